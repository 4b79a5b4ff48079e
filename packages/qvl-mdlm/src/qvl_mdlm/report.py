"""The page of a run: what every run shows, and its answers on held-out pictures; and the page of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

from qvl_core.predictions import by_list
from qvl_core.report import Block, Figure, Figures, Picture, Pictures, Section, Table, run_sections, write
from qvl_core.report import report as core_report
from qvl_core.run import RunFolder
from qvl_mdlm.prediction import Prediction, read_predictions

SHOWN = 24  # answers of each kind
SHORT = 40  # letters of an answer that fit below a small picture
LABELS = {  # figures that are shown, and what they are called
    "nelbo": "nats per sample",
    "answer_perplexity": "perplexity, answers",
    "canvas_perplexity": "perplexity, canvases",
    "exact_match": "exact match",
    "forwards_per_token": "forwards per token",
    "tokens_per_second": "tokens per second",
    "choice_accuracy": "choice accuracy",
    "samples": "samples",
    "left_out": "left out",
}
NOTES = {
    "answer_perplexity": "at most, per token of an answer and its end",
    "canvas_perplexity": "at most, per token, what fills canvases up included",
}


def report(path: Path) -> Path:
    """Write the report.html of the run in `path` anew. Raises BadInput if there is no run."""
    run = RunFolder(Path(path))
    if not (answers := _answers(run)):
        return core_report(run.path)
    sections = run_sections(run)
    return write(run, [*(s for s in sections if not s.folded), *answers, *(s for s in sections if s.folded)])


def evaluation_report(run: RunFolder, model: str) -> Path:
    """Write the page of `qvl-mdlm evaluate`: figures and answers, list by list."""
    done = run.read_result() or {}
    sections = []
    for name in by_list(read_predictions(run.path)):
        error = done.get(f"{name}_nelbo_error")
        notes = NOTES if error is None else {**NOTES, "nelbo": f"± {error:.3f}"}
        items = [
            Figure(label, done[f"{name}_{figure}"], note=notes.get(figure, ""))
            for figure, label in LABELS.items()
            if f"{name}_{figure}" in done
        ]
        sections.append(Section(f"Figures of {name}", [Figures(items)]))
    return write(run, [*sections, *_answers(run)], title=f"Evaluation of {model}", lead=f"on {done.get('data', '')}")


def _answers(run: RunFolder) -> list[Section]:
    lists = by_list(read_predictions(run.path))
    return [Section(f"Answers on {name}", answer_blocks(run.path, found)) for name, found in lists.items()]


def answer_blocks(folder: Path, predictions: Sequence[Prediction]) -> list[Block]:
    """Wrong answers and right ones, with the pictures that were kept; without answers, what is least likely."""
    asked = [p for p in predictions if p.answer is not None]
    if not asked:
        least = sorted(predictions, key=lambda p: -p.nats / p.answer_tokens)[:SHOWN]
        return [Table([_row(p) for p in least], "Least likely")]
    wrong, right = [p for p in asked if not p.correct][:SHOWN], [p for p in asked if p.correct][:SHOWN]
    return [
        *_gallery(folder, wrong, "Answers that are wrong"),
        *_gallery(folder, right, "Answers that are right"),
    ]


def _gallery(folder: Path, predictions: Sequence[Prediction], title: str) -> list[Block]:
    """Short answers below their pictures, others in a table."""
    seen = [p for p in predictions if p.picture and len(p.answer or "") <= SHORT and (folder / p.picture).is_file()]
    rest = [p for p in predictions if p not in seen]
    blocks: list[Block] = []
    if seen:
        blocks.append(Pictures([_picture(folder, p) for p in seen], title))
    if rest:
        blocks.append(Table([_row(p) for p in rest], title))
    return blocks


def _picture(folder: Path, prediction: Prediction) -> Picture:
    wanted = "" if prediction.correct else f" (not {prediction.reference})"
    caption = f"{prediction.question.strip()}\n{prediction.answer or '(no answer)'}{wanted}"
    return Picture((folder / str(prediction.picture)).read_bytes(), caption, "good" if prediction.correct else "bad")


def _row(p: Prediction) -> dict[str, object]:
    row: dict[str, object] = {
        "question": p.question,
        "reference": p.reference,
        "nats per token": p.nats / p.answer_tokens,
    }
    if p.answer is not None:
        row |= {"answer": p.answer, "right": p.correct, "forward passes per token": p.forwards / p.written}
    return row if p.chosen is None else {**row, "chosen": p.chosen}
