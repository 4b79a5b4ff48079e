"""What an evaluation hands over: result.json, the page, a table in the terminal. No torch is imported here."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qvl_core.errors import BadInput
from qvl_core.evaluation import LEFT_OUT
from qvl_core.predictions import FILE, by_list, write_predictions
from qvl_core.run import RunFolder, read_records, result
from qvl_sft.figures import ByGroup, Estimate, Found, Judged, figures_of, scored
from qvl_sft.metrics import tallies
from qvl_sft.prediction import Prediction, read_predictions
from qvl_sft.references import check_offers, offered_by


def publish(
    run: RunFolder, model: str, data: Sequence[str], found: Mapping[str, Found], group_by: str | None
) -> dict[str, Any]:
    """Write result.json and report.html of the predictions in a folder, print their figures, give the result.

    found  what the metrics found in the predictions of each list

    The ends of a figure's 95 % interval stand beside it: test_anls_low, test_anls_high.
    """
    from qvl_sft.report import evaluation_report

    figures: dict[str, Any] = {"model": model, "data": " ".join(data)}
    judged = []
    for name, predictions in by_list(read_predictions(run.path)).items():
        one = Judged.of(predictions, found[name], group_by)
        figures |= {f"{name}_samples": len(predictions)} | figures_of(name, predictions, found[name], group_by)
        for metric, estimate in one.whole.items():
            figures |= {f"{name}_{metric}_low": estimate.low, f"{name}_{metric}_high": estimate.high}
        Console().print(table(name, len(predictions), one.whole, one.by_group))
        judged.append(one)
    left_out = Counter(entry["list"] for entry in read_records(run.path / LEFT_OUT))
    figures |= {f"{name}_left_out": float(count) for name, count in left_out.items()}
    values = result("qvl-sft", seed=0, complete=True, figures=figures)
    run.write_result(values)
    evaluation_report(run, model, judged, group_by)
    return dict(values)


def judge_again(folder: Path, run: RunFolder, metrics: Sequence[str], group_by: str | None) -> dict[str, Found]:
    """Take the answers of the evaluation in `folder` over into another, judged by `metrics`; pictures come along.

    Gives what the metrics found in the answers of each list.
    Raises BadInput if there are none, or if no reference has what a metric needs.
    """
    predictions = read_predictions(folder) if folder.is_dir() else []
    if not predictions:
        raise BadInput(
            f"{folder}: holds no {FILE}; name DATA to answer, or the folder of an evaluation to judge again."
        )
    judged: list[Prediction] = []
    found: dict[str, Found] = {}
    for name, answers in by_list(predictions).items():
        check_offers(name, ((offered_by(p.reference), p.fields.keys()) for p in answers), metrics, group_by)
        found[name] = tallies(answers, metrics)
        judged += scored(answers, found[name])
    write_predictions(run.path, judged)
    take_pictures(judged, folder, run.path)
    return found


def take_pictures(predictions: Sequence[Prediction], source: Path, target: Path) -> None:
    """Copy the pictures of predictions from one evaluation's folder to another's, as far as they are there."""
    for picture in {p.picture for p in predictions if p.picture is not None and (source / p.picture).is_file()}:
        (target / picture).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / picture, target / picture)


def table(
    name: str,
    samples: int,
    whole: Mapping[str, Estimate],
    by_group: ByGroup,
) -> Table:
    """Figures for the terminal."""
    shown = Table(title=f"{name}: {samples:,} samples", title_justify="left")
    for heading in ("figure", *(["group"] if by_group else [])):
        shown.add_column(heading)
    for heading in ("value", "95 % interval", "samples"):
        shown.add_column(heading, justify="right")
    groups = {"all": (samples, whole), **by_group}
    for metric in whole:
        for place, (group, (count, found)) in enumerate(groups.items()):
            value = found[metric]
            shown.add_row(
                "" if place else metric,
                *([group] if by_group else []),
                f"{value.value:.4f}",
                value.spread,
                f"{count:,}",
            )
    return shown
