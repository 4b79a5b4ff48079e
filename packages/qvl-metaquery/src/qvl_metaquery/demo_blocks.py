"""Blocks that the pages of the demos share: figures, grids of drawings, films, what guidance trades, losses."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.report import Block, Card, Cards, Curves, Picture, Strip, Table, Text
from qvl_core.run import RunFolder
from qvl_core.spread import spread
from qvl_data.drawing import sheets
from qvl_data.shown import png

FRAMES = 8


def sheet(title: str, images: Sequence[Image.Image], right: NDArray[np.bool_] | None = None, columns: int = 10) -> Card:
    """Drawings row by row; what is not right (D,) is in a red frame."""
    right = np.ones(len(images), bool) if right is None else right
    return Card(title, [Picture(png(sheets.sheet(images, right, columns)))])


def films(by_caption: Mapping[str, Sequence[Image.Image]]) -> Cards:
    """What was there after some of the steps."""
    cards = []
    for caption, images in by_caption.items():
        frames = [Picture(png(image), f"step {step}") for step, image in enumerate(images, 1)]
        cards.append(Card(caption, [Strip(spread(frames, FRAMES))]))
    return Cards(cards)


def guided(title: str, sweep: Mapping[float, Mapping[str, float]]) -> list[Block]:
    """Figures by guidance, as curves and as a table."""
    points = sorted(sweep.items())
    names = points[0][1]
    curves = {name: [(guidance, figures[name]) for guidance, figures in points] for name in names}
    rows = [
        {"guidance": guidance, **{name: round(value, 3) for name, value in figures.items()}}
        for guidance, figures in points
    ]
    return [
        Curves(title, curves, x="guidance", smooth=False),
        Table(rows),
        Text(
            "Guidance goes beyond what the prompt says, away from what an empty one says: drawings become clearer and "
            "more alike. All figures are therefore always told of the same drawings, at one guidance."
        ),
    ]


def loss(title: str, run: RunFolder) -> Curves:
    """What a run has logged."""
    steps = [record for record in run.read_metrics() if "loss" in record]
    return Curves(title, {"loss": [(record["step"], record["loss"]) for record in steps]})
