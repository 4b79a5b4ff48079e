"""From predictions to flat figures: of a list, and of the groups in it. No torch is imported here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qvl_core.errors import BadInput
from qvl_sft.metrics import LOSS, METRICS, Tally, boxes
from qvl_sft.metrics.bootstrap import intervals
from qvl_sft.prediction import Prediction

GROUPS = 100  # at most
NONE = "none"  # group of the samples that lack the key


Found = Mapping[str, Tally]  # what `metrics.tallies` gives for some predictions


def scored(predictions: Sequence[Prediction], found: Found) -> list[Prediction]:
    """The predictions of one list with the score of each by every metric."""
    columns = {name: tally.scores for name, tally in found.items() if name != LOSS}
    return [replace(p, scores={name: columns[name][i] for name in columns}) for i, p in enumerate(predictions)]


def figures_of(name: str, predictions: Sequence[Prediction], found: Found, group_by: str | None) -> dict[str, float]:
    """Flat figures of the list `name`: test_loss, test_rougeL, and of groups test_rougeL/news.

    Box metrics add how many boxes of the answers left their picture or were none. Raises BadInput for too many groups.
    """
    figures = {f"{name}_{metric}": tally.total for metric, tally in found.items()}
    if any(METRICS[metric].needs == "boxes" for metric in found if metric != LOSS):
        _, outside, unsound = boxes.faults(predictions)
        figures |= {f"{name}_boxes_outside": float(outside), f"{name}_boxes_unsound": float(unsound)}
    for group, places in groups(predictions, group_by).items():
        figures |= {f"{name}_{metric}/{group}": tally.of(places).total for metric, tally in found.items()}
    return figures


def groups(predictions: Sequence[Prediction], key: str | None) -> dict[str, list[int]]:
    """Places in `predictions` by the value of a field, in the order of the values. Raises BadInput for too many."""
    if key is None:
        return {}
    places: dict[str, list[int]] = {}
    for place, prediction in enumerate(predictions):
        places.setdefault(group_of(prediction.fields, key), []).append(place)
    if len(places) > GROUPS:
        raise BadInput(f"group_by {key}: has {len(places):,} values, over {GROUPS}; choose a field with fewer.")
    return dict(sorted(places.items()))


def group_of(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    return NONE if value is None else str(value)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; nan where there is none."""

    value: float
    low: float
    high: float

    @property
    def spread(self) -> str:
        """The interval in words."""
        return "" if math.isnan(self.low) else f"{self.low:.3f} to {self.high:.3f}"

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.3f} ± {(self.high - self.low) / 2:.3f}"


def estimates(found: Found) -> dict[str, Estimate]:
    """Every figure with its interval."""
    return {name: Estimate(found[name].total, *interval) for name, interval in intervals(found).items()}


ByGroup = Mapping[str, tuple[int, Mapping[str, Estimate]]]  # how many samples a group has, and its figures


@dataclass(frozen=True)
class Judged:
    """The predictions of one list, and their figures with intervals: of all, and of groups by the n-grams of all."""

    predictions: Sequence[Prediction]
    whole: Mapping[str, Estimate]
    by_group: ByGroup

    @classmethod
    def of(cls, predictions: Sequence[Prediction], found: Found, group_by: str | None) -> "Judged":
        """Raises BadInput for too many groups."""
        by_group = {
            group: (len(places), estimates({name: tally.of(places) for name, tally in found.items()}))
            for group, places in groups(predictions, group_by).items()
        }
        return cls(predictions, estimates(found), by_group)


def worst(predictions: Sequence[Prediction], metric: str, most: int) -> list[int]:
    """Places of the lowest scores that are not perfect, the lowest first; of equal scores, the highest loss first."""
    best = max((score for p in predictions if (score := p.scores[metric]) is not None), default=0.0)
    line = METRICS[metric].right or max(best, 1.0)
    below = [
        (score, -p.loss / max(p.labels, 1), i)
        for i, p in enumerate(predictions)
        if (score := p.scores[metric]) is not None and score < line
    ]
    return [place for *_, place in sorted(below)[:most]]


def is_right(prediction: Prediction, metric: str) -> bool | None:
    """Whether an answer counts as right by a metric; None where the metric draws no such line."""
    line, score = METRICS[metric].right, prediction.scores.get(metric)
    return None if line is None or score is None else score >= line
