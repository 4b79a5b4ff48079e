"""A judge of digits in colours, by two rules that nothing was trained for; both are tried on held-out pictures.

Ink is how far a pixel is from paper in the channel in which it is furthest. The darkest channel of all inks is the
same, so that a stroke is 1 in every colour.

digit   the nearest real training digit, by ink alone, in 8 x 8 places
colour  the nearest of the known inks to the mean colour of what is inked

Shapes: D pictures of S x S pixels, P = 64 places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_data.example.coloured import COLOURS, DARKEST, INKS, MARGIN, PAPER, SIDE, caption, inked
from qvl_data.example.digits import arrays, indices
from qvl_data.example.split import Split
from qvl_metaquery import judge
from qvl_metaquery.judge import Digits, Pixels, nearest

CAPTIONS = tuple(caption(colour, digit) for colour in COLOURS for digit in range(10))
PLACES = 8


@dataclass(frozen=True)
class ColouredJudge:
    """All that it knows are real digits in ink (K, P), and which they are (K,); captions are numbered by colour, then
    by digit."""

    known: Pixels
    digits: Digits
    captions: Sequence[str] = CAPTIONS

    @classmethod
    def of(cls, seed: int) -> "ColouredJudge":
        """Knows the training digits of a seed."""
        chosen = indices("train", seed)
        known = places(ink(_values([inked(index, COLOURS[0]) for index in chosen])))
        return cls(known, arrays()[1][chosen].astype(np.int64))

    def read(self, images: Sequence[Image.Image]) -> Digits:
        values = _values(images)
        amount = ink(values)
        return 10 * colour(values, amount) + nearest(places(amount), self.known, self.digits)

    def diversity(self, images: Sequence[Image.Image], said: Digits) -> float:
        """Of shapes alone: drawings of one digit in all colours."""
        return judge.diversity(places(ink(_values(images))), said % 10, self.known, self.digits)


def real(split: Split, seed: int) -> tuple[list[Image.Image], Digits]:
    """The digits of a split in each colour, and the numbers of their captions."""
    digits = arrays()[1]
    every = [(index, number) for index in indices(split, seed) for number in range(len(COLOURS))]
    images = [inked(index, COLOURS[number]) for index, number in every]
    return images, np.array([10 * number + int(digits[index]) for index, number in every])


def ink(values: Pixels) -> Pixels:
    """(D, S, S) how much of it is where, in [0, 1], of (D, S, S, 3)."""
    paper = np.array(PAPER, np.float64)
    amount: Pixels = np.clip((paper - values) / (paper - DARKEST), 0, 1).max(-1)
    return amount


def places(amount: Pixels) -> Pixels:
    """(D, P) of (D, S, S): the middle of each picture, averaged."""
    middle = amount[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    part = (SIDE - 2 * MARGIN) // PLACES
    means: Pixels = middle.reshape(-1, PLACES, part, PLACES, part).mean((2, 4))
    return means.reshape(-1, PLACES**2)


def colour(values: Pixels, amount: Pixels) -> Digits:
    """(D,) the number of the ink of pictures (D, S, S, 3), of which so much is where (D, S, S)."""
    weight = amount[..., None] ** 2  # little counts what is hardly inked
    mean = (weight * values).sum((1, 2)) / np.maximum(weight.sum((1, 2)), 1e-9)  # (D, 3)
    known = np.array(list(INKS.values()), np.float64)
    found: Digits = ((mean[:, None] - known) ** 2).sum(-1).argmin(1)
    return found


def _values(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """(D, S, S, 3) from 0 to 255."""
    return np.stack([np.asarray(image.convert("RGB"), np.float64) for image in images])
