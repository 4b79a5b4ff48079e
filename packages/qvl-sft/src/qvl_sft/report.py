"""The page of a run: what every run shows, and its answers on held-out pictures."""

from collections import Counter
from pathlib import Path

from qvl_core.report import Figure, Figures, Matrix, Picture, Pictures, Section, Table, run_sections, write
from qvl_core.report import report as core_report
from qvl_core.run import RunFolder
from qvl_sft.evaluate import PICTURES, Prediction, read_predictions

LABELS = 20  # at most, for a confusion matrix
ALIGNMENT = "alignment"  # folder of stage one in the run folder of both


def report(path: Path) -> Path:
    """Write the report.html of the run in `path` anew. Raises BadInput if there is no run."""
    run = RunFolder(Path(path))
    answers = [_answers(run, name, p) for name, p in _by_list(read_predictions(run.path)).items()]
    more = [*_first_stage(run), *answers]
    return write(run, [*run_sections(run), *more]) if more else core_report(run.path)


def evaluation_report(run: RunFolder, model: str) -> Path:
    """Write the page of `qvl-sft evaluate`: figures and answers."""
    values = run.read_result() or {}
    figures = [
        Figure(name, value) for name, value in values.items() if isinstance(value, float) and "seconds" not in name
    ]
    answers = [_answers(run, name, p) for name, p in _by_list(read_predictions(run.path)).items()]
    return write(run, [Section("Figures", [Figures(figures)]), *answers], title=f"Evaluation of {model}")


def _first_stage(run: RunFolder) -> list[Section]:
    """Stage one of a run in two stages: how its loss fell, and what was measured after it."""
    first = RunFolder(run.path / ALIGNMENT)
    if (done := first.read_result()) is None:
        return []
    figures = [Figure(name.replace("_", " "), done[name]) for name in done if name.startswith("validation_")]
    (loss, *_) = next(section.blocks for section in run_sections(first) if section.title == "Training")
    return [Section("Stage one: the new merger alone", [*([Figures(figures)] if figures else []), loss])]


def _answers(run: RunFolder, name: str, predictions: list[Prediction]) -> Section:
    blocks = [pictures(run.path, predictions), texts(predictions), confusion(predictions)]
    return Section(f"Answers on {name}", [block for block in blocks if block is not None])


def pictures(folder: Path, predictions: list[Prediction], title: str = "") -> Pictures | None:
    """The pictures that were kept, with question, answer and, where it differs, the reference."""
    shown = [
        Picture((folder / p.picture).read_bytes(), _caption(p), "good" if p.correct else "bad")
        for p in predictions
        if p.picture is not None and (folder / p.picture).is_file()
    ]
    return Pictures(shown, title) if shown else None


def texts(predictions: list[Prediction]) -> Table | None:
    """The first questions without a picture, with answer and reference."""
    asked = [p for p in predictions[:PICTURES] if p.picture is None]  # of later ones no picture was kept
    if not asked:
        return None
    rows = [
        {"question": p.question, "answer": p.answer, "reference": p.reference, "right": "yes" if p.correct else "no"}
        for p in asked
    ]
    return Table(rows, "Questions without a picture")


def confusion(predictions: list[Prediction], title: str = "Confusion matrix") -> Matrix | None:
    """Answers against references, if the references are few short labels."""
    labels = sorted({p.reference for p in predictions})
    if not 2 <= len(labels) <= LABELS or max(map(len, labels)) > LABELS:
        return None
    counts = Counter((p.reference, p.answer.strip() if p.answer.strip() in labels else "other") for p in predictions)
    columns = [*labels, "other"] if any(answer == "other" for _, answer in counts) else labels
    rows = [[counts[reference, answer] for answer in columns] for reference in labels]
    return Matrix(labels, rows, title, columns=columns)


def _caption(prediction: Prediction) -> str:
    answer = prediction.answer.strip() or "(no answer)"
    return f"{prediction.question.strip()}\n{answer}" + ("" if prediction.correct else f" (not {prediction.reference})")


def _by_list(predictions: list[Prediction]) -> dict[str, list[Prediction]]:
    lists: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        lists.setdefault(prediction.list, []).append(prediction)
    return lists
