"""The page of an evaluation: figures, and source, target and output of the worst and of the first pictures."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from qvl_core.report import Block, Card, Cards, Figure, Figures, Histogram, Picture, Section, Table, write
from qvl_core.run import RunFolder, Scalar
from qvl_data.audit.cards import shortened
from qvl_data.shown import small
from qvl_edit.wanted import Edited

SIDE = 320  # pixels of a picture on the page, at most
CARDS = 12
SAID = {
    "error": "mean |output - target|, colours from -1 to 1",
    "psnr": "dB, output against target",
    "ssim": "output against target",
    "nearer_target": "part of the outputs that are nearer to the target than to the source",
    "background": "part of a picture that the target leaves as it is",
    "background_error": "mean |output - source| there",
    "background_psnr": "dB, output against source there",
    "source_shift": "pixels, where both show enough of the same",
    "target_shift": "pixels, where both show enough of the same",
}


class Predicted(Protocol):
    """What was measured of a picture."""

    @property
    def list(self) -> str: ...
    @property
    def scores(self) -> Mapping[str, Scalar]: ...


def write_page(
    run: RunFolder, edited: Sequence[Edited], predictions: Sequence[Predicted], values: Mapping[str, Scalar]
) -> None:
    """Write report.html."""
    names = dict.fromkeys(name for one in predictions for name in one.scores if name in values)
    shown = [Figure("pictures", values["pictures"]), Figure("left out", values["left_out"], bar=0, at_most=True)]
    shown += [Figure(name.replace("_", " "), values[name], note=SAID.get(name, "")) for name in names]
    sections = [
        Section("What was measured", [Figures(shown)]),
        Section("By list", _lists(predictions, list(names))),
        Section("How far outputs lie from targets", _errors(predictions)),
        Section("The farthest", _cards(edited, predictions, _worst(predictions))),
        Section("The first", _cards(edited, predictions, range(min(CARDS, len(edited))))),
    ]
    write(run, [one for one in sections if one.blocks], "qvl-edit evaluate", str(values["model"]))


def _lists(predictions: Sequence[Predicted], names: Sequence[str]) -> list[Block]:
    """Means of each list, or kind of edit, where there are several."""
    found = {one.list: [other.scores for other in predictions if other.list == one.list] for one in predictions}
    if len(found) < 2:
        return []
    rows = [
        {"list": name, "pictures": len(scores)} | {figure: _mean(figure, scores) for figure in names}
        for name, scores in found.items()
    ]
    return [Table(rows)]


def _mean(name: str, scores: Sequence[Mapping[str, Scalar]]) -> float | None:
    values = [float(value) for one in scores if isinstance(value := one.get(name), int | float)]
    return round(sum(values) / len(values), 4) if values else None


def _errors(predictions: Sequence[Predicted]) -> list[Block]:
    found = [float(value) for one in predictions if isinstance(value := one.scores.get("error"), int | float)]
    if not found:
        return []
    import numpy as np

    counts, edges = np.histogram(found, 10)
    return [Histogram("Mean absolute error", edges.tolist(), counts.tolist())]


def _worst(predictions: Sequence[Predicted]) -> list[int]:
    errors = {
        place: float(value)
        for place, one in enumerate(predictions)
        if isinstance(value := one.scores.get("error"), int | float)
    }
    return sorted(errors, key=lambda place: -errors[place])[:CARDS]


def _cards(edited: Sequence[Edited], predictions: Sequence[Predicted], places: Sequence[int]) -> list[Block]:
    cards = [_card(edited[place], predictions[place]) for place in places]
    return [Cards(cards)] if cards else []


def _card(one: Edited, found: Predicted) -> Card:
    sources = [(picture, "source") for picture in one.wanted.sources()]
    target = one.target()
    shown = [*sources, *([(target, "target")] if target else []), (one.output(), "output")]
    return Card(
        title=shortened(one.text, 120),
        pictures=[Picture(small(picture, SIDE), caption) for picture, caption in shown],
        tags=[f"{name.replace('_', ' ')} {_said(value)}" for name, value in found.scores.items() if value is not None],
        note=one.wanted.id,
    )


def _said(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
