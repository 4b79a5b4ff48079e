"""The page of a run: what every run shows, and its answers on held-out pictures; and the page of an evaluation."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from qvl_core.predictions import by_list
from qvl_core.report import Block, Figure, Figures, Matrix, Section, Table, run_sections, write
from qvl_core.report import report as core_report
from qvl_core.run import RunFolder
from qvl_sft.figures import ByGroup, Judged, is_right, worst
from qvl_sft.gallery import box_note, gallery
from qvl_sft.metrics import METRICS, tallies
from qvl_sft.prediction import Prediction, read_predictions

SHOWN = 24  # answers of each kind
LABELS = 20  # at most, for a confusion matrix
ALIGNMENT = "alignment"  # folder of stage one in the run folder of both


def report(path: Path) -> Path:
    """Write the report.html of the run in `path` anew. Raises BadInput if there is no run."""
    run = RunFolder(Path(path))
    predictions = by_list(read_predictions(run.path))
    answers = [
        Section(f"Answers on {name}", [*_estimates(run, of_list), *answer_blocks(run.path, of_list)], box_note(of_list))
        for name, of_list in predictions.items()
    ]
    if not (more := [*_first_stage(run), *answers]):
        return core_report(run.path)
    sections = run_sections(run)
    return write(run, [*(s for s in sections if not s.folded), *more, *(s for s in sections if s.folded)])


def evaluation_report(run: RunFolder, model: str, judged: Sequence[Judged], group_by: str | None) -> Path:
    """Write the page of `qvl-sft evaluate`: figures, by group, and answers, list by list."""
    sections = []
    for one in judged:
        name, predictions = one.predictions[0].list, list(one.predictions)
        figures = [Figure(metric, e.value, note=e.spread) for metric, e in one.whole.items()]
        blocks: list[Block] = [Figures([*figures, Figure("samples", len(predictions))])]
        if group_by is not None:
            blocks.append(group_table(one.by_group, group_by))
        sections.append(Section(f"Figures of {name}", blocks, "Beneath each figure its 95 % interval."))
        sections.append(Section(f"Answers on {name}", answer_blocks(run.path, predictions), box_note(predictions)))
    data = (run.read_result() or {}).get("data")
    return write(run, sections, title=f"Evaluation of {model}", lead=f"on {data}" if data else "")


def _estimates(run: RunFolder, predictions: list[Prediction]) -> list[Block]:
    """What a run's predictions say of each figure, and of each group."""
    group_by = yaml.safe_load(run.recipe_file.read_text(encoding="utf-8"))["evaluate"].get("group_by")
    judged = Judged.of(predictions, tallies(predictions, metrics_of(predictions)), group_by)
    rows = [{"figure": name, "value": e.value, "95 % interval": e.spread} for name, e in judged.whole.items()]
    return [Table(rows), *([group_table(judged.by_group, group_by)] if group_by else [])]


def _first_stage(run: RunFolder) -> list[Section]:
    """Stage one of a run in two stages: how its loss fell, and what was measured after it."""
    first = RunFolder(run.path / ALIGNMENT)
    if (done := first.read_result()) is None:
        return []
    figures = [Figure(name.replace("_", " "), done[name]) for name in done if name.startswith("validation_")]
    (loss, *_) = next(section.blocks for section in run_sections(first) if section.title == "Training")
    return [Section("Stage one: the new merger alone", [*([Figures(figures)] if figures else []), loss])]


def metrics_of(predictions: Sequence[Prediction]) -> list[str]:
    """By which metrics predictions were scored, as far as these are known here (a plugin's may not be)."""
    return [name for name in predictions[0].scores if name in METRICS] if predictions else []


def group_table(by_group: ByGroup, key: str) -> Table:
    """Every figure of every group, with half of its 95 % interval."""
    rows = [
        {key: group, "samples": count, **{metric: str(estimate) for metric, estimate in of_group.items()}}
        for group, (count, of_group) in by_group.items()
    ]
    return Table(rows, f"By {key}")


def answer_blocks(folder: Path, predictions: list[Prediction]) -> list[Block]:
    """The worst answers, the first ones as they come, and a confusion matrix where there are few short answers."""
    metrics = metrics_of(predictions)
    first = predictions[:SHOWN]
    blocks: list[Block | None] = []
    if metrics and (lowest := worst(predictions, metrics[0], SHOWN)):
        title = "Answers that are wrong" if METRICS[metrics[0]].right else f"Lowest {metrics[0]}"
        blocks += gallery(folder, [predictions[place] for place in lowest], metrics, title)
        right = [p for p in first if is_right(p, metrics[0]) is not False]
        blocks += gallery(
            folder, right, metrics, "Answers that are right" if METRICS[metrics[0]].right else "The first"
        )
    else:
        blocks += gallery(folder, first, metrics, "")
    return [block for block in [*blocks, confusion(predictions)] if block is not None]


def confusion(predictions: list[Prediction], title: str = "Confusion matrix") -> Matrix | None:
    """Answers against references, if the references are few short labels."""
    labels = sorted({p.accepted[0] for p in predictions})
    if not 2 <= len(labels) <= LABELS or max(map(len, labels)) > LABELS:
        return None
    counts = Counter((p.accepted[0], p.said if p.said in labels else "other") for p in predictions)
    columns = [*labels, "other"] if any(answer == "other" for _, answer in counts) else labels
    rows = [[counts[reference, answer] for answer in columns] for reference in labels]
    return Matrix(labels, rows, title, columns=columns)
