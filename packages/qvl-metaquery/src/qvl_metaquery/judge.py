"""A judge of drawn digits that nothing was trained for: the nearest of the real ones, and how much drawings differ.

    read = nearest(grey(pictures), known, digits)         # the digit that each picture is taken for
    share = (read == asked).mean()

Recognised alone is won by drawing one good seven again and again; diversity tells it. Both are of the same pictures.

Shapes: D drawings, K known real digits, P = 64 pixels from 0 (black) to 1 (white).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_data.example.digits import arrays, indices
from qvl_data.example.drawings import caption
from qvl_data.example.split import Split

SIDE = 8
Pixels = NDArray[np.float64]
Digits = NDArray[np.int64]


@dataclass(frozen=True)
class DigitJudge:
    """The demo's judge: all that it knows are real digits (K, P), and which they are (K,)."""

    known: Pixels
    digits: Digits
    captions: Sequence[str] = tuple(map(caption, range(10)))

    def read(self, images: Sequence[Image.Image]) -> Digits:
        return nearest(grey(images), self.known, self.digits)

    def diversity(self, images: Sequence[Image.Image], said: Digits) -> float:
        return diversity(grey(images), said, self.known, self.digits)


def grey(pictures: Sequence[Image.Image]) -> Pixels:
    """(D, P) of pictures of any size."""
    small = [picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(one, np.float64).reshape(-1) for one in small]) / 255


def real(split: Split, seed: int = 0) -> tuple[Pixels, Digits]:
    """The real digits of a split (K, P), and which they are (K,)."""
    pictures, digits = arrays()
    chosen = indices(split, seed)
    return pictures[chosen].reshape(-1, SIDE * SIDE) / 16, digits[chosen].astype(np.int64)


def nearest(drawn: Pixels, known: Pixels, digits: Digits) -> Digits:
    """(D,) the digit of the known picture (K, P) that is nearest to each drawing (D, P)."""
    found: Digits = digits[_squares(drawn, known).argmin(1)]
    return found


def diversity(drawn: Pixels, asked: Digits, known: Pixels, digits: Digits) -> float:
    """How far drawings (D, P) of the same digit (D,) lie apart, as a part of how far the known ones do."""
    return _apart(drawn, asked) / _apart(known, digits)


def _apart(pictures: Pixels, digits: Digits) -> float:
    """Distance of two different pictures of one digit: the mean over pairs, then over the digits that occur."""
    means = []
    for digit in np.unique(digits):
        own = pictures[digits == digit]
        distances = np.sqrt(_squares(own, own))
        means.append(distances.sum() / (len(own) * (len(own) - 1)))
    return float(np.mean(means))


def _squares(a: Pixels, b: Pixels) -> Pixels:
    """(A, B) squared distances."""
    squares = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    return np.maximum(squares, 0)
