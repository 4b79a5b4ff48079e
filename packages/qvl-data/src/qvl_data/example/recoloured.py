"""The handwritten digits in two colours each, 16 x 16 pixels, and three edits of them that are exactly right.

A digit belongs to the split that it has in every kind of questions about digits, and has its colours in every edit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..order import mix
from ..sample import Edit, Meta, Sample
from .digits import LICENSE, indices, small
from .pictures import image
from .split import Split

SIDE = 16
CONTRAST = 64  # of 255, at least between the colours of a picture: without it no edit but one could be told from none


@dataclass(frozen=True)
class Change:
    """One edit: what is said, what it does to an RGB picture, and whether it undoes itself."""

    said: dict[str, str]
    make: Callable[[Image.Image], Image.Image]
    undoes_itself: bool = True


def reddened(picture: Image.Image) -> Image.Image:
    """Brightness halved, and half of full red put on it: in [-1, 1], half of the mean, +0.5 in red, -0.5 elsewhere."""
    half = np.asarray(picture, np.float64).mean(2) / 2
    pixels = np.stack([half + 127.5, half, half], 2)
    return Image.fromarray(pixels.round().astype(np.uint8))


CHANGES = {
    "red": Change({"en": "make it red", "zh": "变成红色"}, reddened, undoes_itself=False),
    "invert": Change({"en": "invert the colours", "zh": "反转颜色"}, ImageOps.invert),
    "flip": Change({"en": "flip left and right", "zh": "左右翻转"}, ImageOps.mirror),
}


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """Each digit of a split, once for each edit."""
    for index in indices(split, seed):
        for name in CHANGES:
            yield recoloured(index, name, split, seed)


def recoloured(index: int, change: str, split: Split, seed: int = 0) -> Sample:
    """Digit `index`, changed."""
    source, made = inked(index, seed), CHANGES[change]
    name = f"recoloured/{change}-{index:04d}"
    return Sample(
        id=f"recoloured-{change}-{index:04d}",
        task="edit",
        media=(image(source, f"{name}-source.png"), image(made.make(source), f"{name}-target.png")),
        edit=Edit(sources=(0,), target=1, instruction=made.said, inverse=made.said if made.undoes_itself else None),
        meta=Meta(dataset=f"recoloured/{change}", license=LICENSE, split=split),
    )


def inked(index: int, seed: int = 0) -> Image.Image:
    """Digit `index` in a colour of its own on another one, RGB; each of its 8 x 8 pixels is 2 x 2."""
    ink = np.asarray(small(index).resize((SIDE, SIDE), Image.Resampling.NEAREST), np.float64)[..., None] / 255
    paper, pen = next(pair for attempt in count() if _apart(*(pair := _colours(seed, index, attempt))))
    pixels = (1 - ink) * paper + ink * pen
    return Image.fromarray(pixels.round().astype(np.uint8))


def _colours(*key: int) -> NDArray[np.float64]:
    """(2, 3) in 0..255, decided by `key`."""
    return np.array([[mix(*key, colour, channel) % 256 for channel in range(3)] for colour in range(2)], np.float64)


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool(np.abs(one - other).mean() >= CONTRAST)
