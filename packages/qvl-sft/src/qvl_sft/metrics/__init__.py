"""Figures of answers: which there are, and how one is made. No torch, and no metric's library, is imported here.

    exact_match                        share of answers equal to a reference up to white space at the ends
    anls                               0..1, nearness in letters, for text read off pictures (DocVQA, ST-VQA)
    bleu, rouge1, rouge2, rougeL       0..1 (others write BLEU as 0..100)
    cider                              CIDEr-D, 0..10
    iou, box_recall_50, box_precision_50   0..1, for boxes written as {"bbox_2d": [x1, y1, x2, y2]} in 0..1000

A metric says what each answer adds (`Tally.parts`) and what the sum says (`Tally.figure`): so the same numbers give the
figure of all answers, of a group of them, of one answer, and of the bootstrap's resamples.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput
from qvl_sft.prediction import Prediction

Array = NDArray[np.float64]
Needs = Literal["answer", "boxes"]


def ratio(sums: Array) -> Array:
    """(..., 2) sums of scores and of what they are out of, as their quotient; nan for 0 / 0."""
    out = np.full(sums.shape[:-1], np.nan)
    return np.divide(sums[..., 0], sums[..., 1], out=out, where=sums[..., 1] != 0)


@dataclass(frozen=True)
class Tally:
    """What a metric found in N answers: parts (N, K), and the figure that sums of them (..., K) make (...)."""

    parts: Array
    figure: Callable[[Array], Array] = ratio

    @classmethod
    def mean(cls, scores: Sequence[float]) -> "Tally":
        """A score for each answer; nan does not count."""
        values = np.asarray(scores, np.float64)
        counted = np.isfinite(values)
        return cls(np.stack([np.where(counted, values, 0.0), counted], axis=1))

    @property
    def total(self) -> float:
        return float(self.figure(self.parts.sum(axis=0)))

    @property
    def scores(self) -> list[float | None]:
        """Of each answer alone."""
        return [float(value) if np.isfinite(value) else None for value in self.figure(self.parts)]

    def of(self, chosen: Sequence[int]) -> "Tally":
        """Of some of the answers."""
        return Tally(self.parts[np.asarray(chosen, np.int64)], self.figure)


@dataclass(frozen=True)
class Metric:
    """A named figure.

    measure  predictions of one list to a Tally, or to a score for each (their mean is the figure, nan does not count)
    needs    what a reference must hold
    right    score from which one answer counts as right; None where no such line can be drawn
    """

    name: str
    measure: Callable[[Sequence[Prediction]], Tally | Sequence[float]]
    needs: Needs = "answer"
    right: float | None = None

    def __call__(self, predictions: Sequence[Prediction]) -> Tally:
        found = self.measure(predictions)
        return found if isinstance(found, Tally) else Tally.mean(found)


METRICS: dict[str, Metric] = {}
LOSS = "loss"  # stands beside the metrics in every table


def register_metric(
    name: str, needs: Needs = "answer", right: float | None = None
) -> Callable[[Callable[[Sequence[Prediction]], Tally | Sequence[float]]], Metric]:
    """Make a function a metric that recipes can name; also for --plugin files. Raises BadInput for a taken name.

    @register_metric("polite")
    def polite(predictions):
        return [float("please" in p.said) for p in predictions]
    """

    def register(measure: Callable[[Sequence[Prediction]], Tally | Sequence[float]]) -> Metric:
        taken = name == LOSS or (name in METRICS and not _same(METRICS[name].measure, measure))
        if taken:
            raise BadInput(f'the metric "{name}" is there already; choose another name.')
        METRICS[name] = Metric(name, measure, needs, right)
        return METRICS[name]

    return register


def _same(one: object, other: object) -> bool:
    """Whether two functions are one, defined twice (a notebook's cell that is run again)."""
    return all(getattr(one, key) == getattr(other, key) for key in ("__module__", "__qualname__"))


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError, with what was probably meant, for a name that is no metric's."""
    for name in names:
        if name not in METRICS:
            near = get_close_matches(name.lower(), METRICS, n=1)
            meant = f'did you mean "{near[0]}"? ' if near else ""
            raise ValueError(f'there is no metric "{name}"; {meant}Choose from {", ".join(METRICS)}')


def tallies(predictions: Sequence[Prediction], metrics: Iterable[str]) -> dict[str, Tally]:
    """What each metric finds in the predictions of one list, and their loss. Raises BadInput for an unknown metric."""
    try:
        check_names(metrics := tuple(metrics))
    except ValueError as error:
        raise BadInput(f"{error}.") from None
    loss = np.array([(p.loss, p.labels) for p in predictions], np.float64).reshape(-1, 2)
    return {name: METRICS[name](predictions) for name in metrics} | {LOSS: Tally(loss)}


from qvl_sft.metrics import anls, bleu, boxes, cider, exact, rouge  # noqa: E402, F401  (they register themselves)
