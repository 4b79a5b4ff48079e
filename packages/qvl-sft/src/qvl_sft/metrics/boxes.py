"""Boxes that a model writes against those of the reference: {"bbox_2d": [x1, y1, x2, y2], "label": ...} in 0..1000.

Boxes are paired one to one so that most is gained; a pair with two different labels gains nothing. A box that leaves
the picture is clipped to it, one that is empty or inverted counts as written and matches nothing, and both are counted
(`faults`). A sample whose reference has no boxes is right if none is written.

Shapes: R boxes of the reference, P of the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvl_data.grounding import entries, parse
from qvl_sft.metrics import Array, Tally, register_metric
from qvl_sft.prediction import Prediction, spoken

SIDE = 1000  # of a picture in the coordinates of the text; IoU is the same in pixels
FOUND = 0.5


@dataclass(frozen=True)
class Box:
    """x1, y1, x2, y2 in 0..1000 of the picture."""

    xy: tuple[float, float, float, float]
    label: str | None = None


@dataclass(frozen=True)
class Boxes:
    """What an answer states: sound boxes, how many of them reached out of the picture, and how many are no boxes."""

    sound: tuple[Box, ...] = ()
    outside: int = 0
    unsound: int = 0

    @property
    def written(self) -> int:
        return len(self.sound) + self.unsound


def reference_boxes(text: str) -> tuple[Box, ...]:
    """The boxes of a reference answer. Raises BadSample for a box outside the picture, or none at all."""
    regions = parse(spoken(text), SIDE, SIDE)
    return tuple(Box(tuple(r.xy), r.label) for r in regions if r.kind == "box")  # type: ignore[arg-type]


def answer_boxes(text: str) -> Boxes:
    """The boxes of what a model wrote, mended or counted where they are wrong."""
    sound, outside, unsound = [], 0, 0
    for kind, xy, label in entries(spoken(text)):
        if kind != "box":
            continue
        clipped = [float(min(max(value, 0), SIDE)) for value in xy]
        outside += clipped != xy
        if len(clipped) == 4 and clipped[0] < clipped[2] and clipped[1] < clipped[3]:
            sound.append(Box((clipped[0], clipped[1], clipped[2], clipped[3]), label))
        else:
            unsound += 1
    return Boxes(tuple(sound), outside, unsound)


def faults(predictions: Sequence[Prediction]) -> tuple[int, int, int]:
    """Over all answers: boxes that were written, that left the picture, that are no boxes."""
    found = [answer_boxes(p.answer) for p in predictions]
    return sum(b.written for b in found), sum(b.outside for b in found), sum(b.unsound for b in found)


@register_metric("iou", needs="boxes", right=FOUND)
def iou(predictions: Sequence[Prediction]) -> list[float]:
    """Intersection over union of the pairs, over the larger number of boxes: what is missing or too much costs."""
    scores = []
    for p in predictions:
        wanted, stated = _both(p)
        most = max(len(wanted), stated.written)
        scores.append(paired(overlaps(wanted, stated.sound)).sum() / most if most else 1.0)
    return scores


@register_metric("box_recall_50", needs="boxes", right=1.0)
def box_recall_50(predictions: Sequence[Prediction]) -> Tally:
    """Share of the reference's boxes that are found with an IoU of at least 0.5, over all boxes of the list."""
    return Tally(np.array([(_found(p), len(_both(p)[0])) for p in predictions], np.float64).reshape(-1, 2))


@register_metric("box_precision_50", needs="boxes", right=1.0)
def box_precision_50(predictions: Sequence[Prediction]) -> Tally:
    """Share of the written boxes that are right in this sense; 0 if none is written where one had to be."""

    def precision(sums: Array) -> Array:
        found, written, wanted = sums[..., 0], sums[..., 1], sums[..., 2]
        empty = np.where(wanted > 0, 0.0, np.nan)
        return np.where(written > 0, found / np.maximum(written, 1.0), empty)

    parts = [(_found(p), _both(p)[1].written, len(_both(p)[0])) for p in predictions]
    return Tally(np.array(parts, np.float64).reshape(-1, 3), precision)


def overlaps(wanted: Sequence[Box], stated: Sequence[Box]) -> Array:
    """(R, P) intersection over union; 0 where both boxes have a label and the labels differ."""
    one = np.array([box.xy for box in wanted], np.float64).reshape(-1, 1, 4)
    other = np.array([box.xy for box in stated], np.float64).reshape(1, -1, 4)
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])  # (R, P, 2)
    shared = sides.clip(0).prod(-1)
    whole = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - shared
    agree = [[_agree(a.label, b.label) for b in stated] for a in wanted]
    return shared / whole * np.array(agree, np.float64).reshape(shared.shape)


def paired(gains: Array) -> Array:
    """(min(R, P),) gains of the pairs whose sum is largest."""
    if gains.shape[0] > gains.shape[1]:
        gains = gains.T
    return gains[np.arange(len(gains)), assign(-gains)]


def assign(costs: Array) -> NDArray[np.int64]:
    """(R,) a column for each row of costs (R, P), R <= P, no column twice, so that their sum is smallest.

    Hungarian method by shortest augmenting paths with potentials (Jonker and Volgenant 1987), O(R R P).
    """
    rows, columns = costs.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for start in range(rows):
        nearest, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, bool)
        row, column = start, -1
        while row >= 0:  # until a column that nobody owns is nearest
            reached = costs[row] - row_price[row] - column_price
            closer = ~done & (reached < nearest)
            nearest[closer], before[closer] = reached[closer], column
            column = int(np.argmin(np.where(done, np.inf, nearest)))
            step = nearest[column]
            row_price[[start, *owner[done]]] += step
            column_price[done] -= step
            nearest[~done] -= step
            done[column] = True
            row = int(owner[column])
        while column >= 0:  # hand the columns of the path on
            previous = int(before[column])
            owner[column] = owner[previous] if previous >= 0 else start
            column = previous
    order = np.argsort(np.where(owner < 0, rows, owner), kind="stable")
    return order[:rows]


def _agree(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one.strip().casefold() == other.strip().casefold()


def _found(p: Prediction) -> int:
    wanted, stated = _both(p)
    return round(paired((overlaps(wanted, stated.sound) >= FOUND).astype(np.float64)).sum())


def _both(p: Prediction) -> tuple[tuple[Box, ...], Boxes]:
    return reference_boxes(p.reference), answer_boxes(p.answer)
