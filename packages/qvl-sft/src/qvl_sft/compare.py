"""`qvl-sft compare A B DATA`: two models on the same samples, sample by sample.

Each of A and B is a model (as `evaluate` takes it), or the folder of an evaluation whose answers are taken as they are.
Models are loaded one after the other. How sure a difference is follows from the samples on which the two differ.
"""

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qvl_core.errors import BadInput
from qvl_core.evaluation import evaluation_folder
from qvl_core.predictions import FILE, write_predictions
from qvl_core.run import RunFolder, result
from qvl_sft.asking import Asking
from qvl_sft.judge import judge_again
from qvl_sft.metrics import tallies
from qvl_sft.metrics.bootstrap import differences, sign_test
from qvl_sft.prediction import Prediction, read_predictions

SHOWN = 24  # samples of each direction whose pictures are shown

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Contest:
    """One figure of two models on the same samples.

    low, high  95 % interval of b - a, by a paired bootstrap
    a_better, b_better  samples that one of them scores higher on
    p          of the sign test on these
    """

    a: float
    b: float
    low: float
    high: float
    a_better: int
    b_better: int
    p: float

    @property
    def difference(self) -> float:
        return self.b - self.a


@dataclass(frozen=True)
class Pairs:
    """The answers of two models to the same questions of one list, and how many questions only one of them had."""

    a: list[Prediction]
    b: list[Prediction]
    only_a: int = 0
    only_b: int = 0


def compare(
    a: str,
    b: str,
    data: Sequence[str],
    out: Path,
    *,
    metrics: Sequence[str] = ("exact_match",),
    asking: Asking = Asking(),  # noqa: B008 (immutable)
    fresh: bool = False,
) -> dict[str, Any]:
    """Compare two models; `out` gets result.json, report.html, and what each of them answered in a/ and b/.

    `fresh` moves a comparison that is at `out` aside. Raises BadInput for options that would do nothing.
    """
    from qvl_sft.compare_report import comparison_report

    _check_use(a, b, data, asking)
    with evaluation_folder(out, fresh) as run:
        aside = run.path
        lists = asking.lists(data)
        for name, model in (("a", a), ("b", b)):
            (aside / name).mkdir()
            _answers(model, lists, RunFolder(aside / name), metrics, asking)
        pairs = paired(read_predictions(aside / "a"), read_predictions(aside / "b"))
        contests = {name: contest(of_list, metrics) for name, of_list in pairs.items()}
        figures: dict[str, Any] = {"a": a, "b": b, "data": " ".join(data)}
        for name, found in contests.items():
            figures |= _flat(name, pairs[name], found)
            Console().print(table(name, len(pairs[name].a), found))
        values = result("qvl-sft", seed=0, complete=True, figures=figures)
        run.write_result(values)
        for name, mixture in lists.items():
            pairs[name] = _with_pictures(pairs[name], mixture, run, name, metrics[0])
        comparison_report(run, (a, b), pairs, contests)
    print(RunFolder(out).report_file)
    return dict(values)


def paired(one: Sequence[Prediction], other: Sequence[Prediction]) -> dict[str, Pairs]:
    """By list, the samples that both have answered, in the order of the first. Raises BadInput if there are none.

    Samples are the same by list and id, those of one id in turn; their references must be equal.
    """
    theirs = dict(_keyed(other))
    ours = dict(_keyed(one))
    common = [key for key in ours if key in theirs]
    if not common:
        raise BadInput("compare: A and B have no sample in common (by list and id); let both answer the same DATA.")
    for key in common:
        if ours[key].reference != theirs[key].reference:
            raise BadInput(f"compare: sample {key[1]} has two references; let both answer the same DATA.")
    lonely = [Counter(key[0] for key in mine if key not in others) for mine, others in ((ours, theirs), (theirs, ours))]
    return {
        name: Pairs(
            [ours[key] for key in common if key[0] == name],
            [theirs[key] for key in common if key[0] == name],
            lonely[0][name],
            lonely[1][name],
        )
        for name in dict.fromkeys(key[0] for key in common)
    }


def contest(pairs: Pairs, metrics: Sequence[str]) -> dict[str, Contest]:
    """Every figure of both, the loss last."""
    one, other = tallies(pairs.a, metrics), tallies(pairs.b, metrics)
    spans = differences(one, other)
    found = {}
    for name in one:
        sign = -1 if name == "loss" else 1
        scores = zip(one[name].scores, other[name].scores, strict=True)
        gains = [sign * (b - a) for a, b in scores if a is not None and b is not None]
        more, less = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        found[name] = Contest(one[name].total, other[name].total, *spans[name], less, more, sign_test(more, less))
    return found


def better(pairs: Pairs, metric: str, most: int = SHOWN) -> tuple[list[int], list[int]]:
    """Places where A's score is higher, and where B's is, the largest differences first."""
    gains = []
    for place, (a, b) in enumerate(zip(pairs.a, pairs.b, strict=True)):
        one, other = a.scores.get(metric), b.scores.get(metric)
        if one is not None and other is not None and one != other:
            gains.append((other - one, place))
    gains.sort(key=lambda gain: (-abs(gain[0]), gain[1]))
    return [i for gain, i in gains if gain < 0][:most], [i for gain, i in gains if gain > 0][:most]


def table(name: str, samples: int, contests: Mapping[str, Contest]) -> Table:
    """Figures for the terminal."""
    shown = Table(title=f"{name}: {samples:,} samples", title_justify="left")
    for heading in ("figure", "A", "B", "B - A", "95 % interval", "better", "p"):
        shown.add_column(heading, justify="left" if heading == "figure" else "right", no_wrap=True)
    for metric, c in contests.items():
        values = (f"{c.a:.3f}", f"{c.b:.3f}", f"{c.difference:+.3f}", f"{c.low:+.3f} {c.high:+.3f}")
        shown.add_row(metric, *values, f"{c.a_better} : {c.b_better}", f"{c.p:.1g}")
    return shown


def _check_use(a: str, b: str, data: Sequence[str], asking: Asking) -> None:
    """Raise BadInput for options that say how to answer, or on what, where nothing is asked."""
    given = all(_has_answered(Path(model), data) for model in (a, b))
    idle = asking.of_models * given + asking.of_data * (not data)
    if idle:
        fix = "leave it out." if data else "name DATA to answer, or leave it out."
        raise BadInput(f"{', '.join(idle)}: the answers in {a} and {b} are compared as they are; {fix}")


def _has_answered(folder: Path, data: Sequence[str]) -> bool:
    """Whether the answers in a folder are taken as they are; a run, given data, answers again."""
    return (folder / FILE).is_file() and not (data and (folder / "final").is_dir())


def _answers(model: str, lists: Mapping[str, Any], run: RunFolder, metrics: Sequence[str], asking: Asking) -> None:
    """The answers of one of the two, judged, in a folder of their own."""
    if _has_answered(Path(model), [*lists]):
        judge_again(Path(model), run, metrics, None)
        return
    if not lists:
        raise BadInput(f"{model}: holds no {FILE}; name DATA to answer, or the folder of an evaluation.")
    import torch

    from qvl_sft.evaluate import answer

    answer(model, lists, run, metrics, asking)
    gc.collect()  # the model is gone before the next one comes
    torch.cuda.empty_cache()


def _keyed(predictions: Sequence[Prediction]) -> Iterator[tuple[Key, Prediction]]:
    seen: Counter[tuple[str, str]] = Counter()
    for p in predictions:
        yield (p.list, p.id, seen[p.list, p.id]), p
        seen[p.list, p.id] += 1


def _flat(name: str, pairs: Pairs, contests: Mapping[str, Contest]) -> dict[str, float | int]:
    figures: dict[str, float | int] = {f"{name}_samples": len(pairs.a)}
    figures |= {f"{name}_only_{who}": count for who, count in (("a", pairs.only_a), ("b", pairs.only_b)) if count}
    for metric, c in contests.items():
        values = {"a": c.a, "b": c.b, "difference": c.difference, "difference_low": c.low, "difference_high": c.high}
        figures |= {f"{name}_{metric}_{key}": value for key, value in values.items()}
        figures |= {f"{name}_{metric}_a_better": c.a_better, f"{name}_{metric}_b_better": c.b_better}
        figures[f"{name}_{metric}_p"] = c.p
    return figures


def _with_pictures(pairs: Pairs, mixture: Any, run: RunFolder, name: str, metric: str) -> Pairs:
    """The pairs, those that the page shows with a picture in the folder a/."""
    from qvl_data.errors import BadSample
    from qvl_data.shown import keep_picture

    a = list(pairs.a)
    wanted = {a[i].id: i for part in better(pairs, metric) for i in part if a[i].picture is None}
    for item in mixture.items():
        if not wanted:
            break
        try:
            place = wanted.pop(mixture.outline(item).id, None)
        except BadSample:
            continue
        if place is not None:
            a[place] = replace(a[place], picture=keep_picture(mixture, item, run.path / "a", name))
    write_predictions(run.path / "a", a)
    return replace(pairs, a=a)
