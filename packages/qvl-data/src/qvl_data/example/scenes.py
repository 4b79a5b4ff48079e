"""Several handwritten digits in one picture, and where the ink of each is."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..order import mix
from .digits import arrays, small

_CELL = 64
_INK = 40
"""Grey value from which a pixel counts as ink."""


@dataclass(frozen=True)
class Placed:
    """A digit, its number in the set, and the box of its ink in pixels (x1, y1, x2, y2)."""

    digit: int
    index: int
    box: tuple[int, int, int, int]


def drawn(index: int, side: int) -> Image.Image:
    """Digit `index`, white on black, `side` pixels square."""
    return small(index).resize((side, side), Image.Resampling.BICUBIC)


def scene(indices: list[int], columns: int, rows: int, *key: int) -> tuple[Image.Image, list[Placed]]:
    """Digits of different sizes on black, each in a cell of its own; `key` decides where."""
    canvas = Image.new("L", (columns * _CELL, rows * _CELL))
    cells = sorted(range(columns * rows), key=lambda cell: mix(*key, cell))
    placed = []
    for number, (index, cell) in enumerate(zip(indices, cells, strict=False)):
        side = 32 + mix(*key, 100, number) % 31
        x = cell % columns * _CELL + mix(*key, 101, number) % (_CELL - side + 1)
        y = cell // columns * _CELL + mix(*key, 102, number) % (_CELL - side + 1)
        digit = drawn(index, side)
        canvas.paste(digit, (x, y))
        ink = np.asarray(digit) >= _INK
        across, down = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
        box = (x + int(across[0]), y + int(down[0]), x + int(across[-1]) + 1, y + int(down[-1]) + 1)
        placed.append(Placed(int(arrays()[1][index]), index, box))
    return canvas, placed
