"""The handwritten digits inked in colours on light paper, 32 x 32 pixels, to be drawn by name: a red seven.

A digit belongs to the split that it has in every kind of questions about digits, in whichever colour.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..sample import Message, Meta, Part, Sample
from .digits import LICENSE, arrays, indices, small
from .drawings import NAMES
from .pictures import image
from .split import Split

SIDE = 32
MARGIN = 4
PAPER = (255, 250, 240)
DARKEST = 40
INKS = {  # the darkest channel of each is the same, so that ink can be told from paper without knowing its colour
    "red": (215, DARKEST, DARKEST),
    "orange": (240, 140, DARKEST),
    "green": (DARKEST, 150, 70),
    "blue": (DARKEST, 90, 215),
    "purple": (150, DARKEST, 180),
}
COLOURS = tuple(INKS)


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """Each digit of a split in each colour."""
    for index in indices(split, seed):
        for colour in COLOURS:
            yield coloured(index, colour, split)


def caption(colour: str, digit: int) -> str:
    """What a digit is asked for with: a red seven."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {NAMES[digit]}"


def coloured(index: int, colour: str, split: Split) -> Sample:
    """Digit `index` in a colour, asked for by both."""
    said = caption(colour, int(arrays()[1][index]))
    return Sample(
        id=f"coloured-{colour}-{index:04d}",
        task="t2i",
        media=(image(inked(index, colour), f"coloured/{colour}-{index:04d}.png"),),
        messages=(
            Message(role="user", parts=(Part(type="text", text=said),)),
            Message(role="assistant", parts=(Part(type="image", media=0),)),
        ),
        meta=Meta(dataset="coloured", license=LICENSE, split=split),
    )


def inked(index: int, colour: str) -> Image.Image:
    """Digit `index` on paper, RGB."""
    ink = _ink(index)[..., None]
    pixels = (1 - ink) * np.array(PAPER) + ink * np.array(INKS[colour])
    return Image.fromarray(pixels.round().astype(np.uint8))


@cache
def _ink(index: int) -> NDArray[np.float64]:
    """(SIDE, SIDE) how much ink is where, in [0, 1]: digit `index` enlarged, with edges as a pen leaves them."""
    inner = SIDE - 2 * MARGIN
    grey = np.asarray(small(index).resize((inner, inner), Image.Resampling.BICUBIC), np.float64) / 255
    part = np.clip((grey - 0.2) / 0.6, 0, 1)
    return np.pad(part * part * (3 - 2 * part), MARGIN)
