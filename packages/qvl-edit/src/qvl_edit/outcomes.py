"""Whether edits came out, where what is right is known: by distance to it, to the other edits, and to the source.

Shapes: D drawings, E edits that a picture could be asked for, H x W x 3 pixels in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLOSE = 0.15  # mean absolute error, of the 2 from black to white, below which a drawing may be right
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """Of each drawing its mean absolute error (D,), in [0, 2], and whether it is the edit that was asked for (D,)."""

    errors: Floats
    right: NDArray[np.bool_]

    @property
    def success(self) -> float:
        return float(self.right.mean())

    @property
    def error(self) -> float:
        return float(self.errors.mean())


def outcomes(
    drawn: Sequence[Image.Image],
    asked: Sequence[int],
    edits: Sequence[Sequence[Image.Image]],
    sources: Sequence[Image.Image],
) -> Outcomes:
    """Right is a drawing that is nearer to what was asked than to the other edits and to the source, and closer to it
    than `CLOSE`.

    asked  (D,) which of the edits
    edits  (D, E) of the same picture
    """
    far = np.array([_distances(one, [*row, source]) for one, row, source in zip(drawn, edits, sources, strict=True)])
    place = np.array(asked)
    errors = far[np.arange(len(far)), place]  # (D,)
    return Outcomes(errors, (far.argmin(1) == place) & (errors < CLOSE))


def _distances(one: Image.Image, others: Sequence[Image.Image]) -> Floats:
    """(E + 1,) mean absolute differences."""
    return np.abs(np.stack([_pixels(other) for other in others]) - _pixels(one)).mean((1, 2, 3))


def _pixels(picture: Image.Image) -> Floats:
    return np.asarray(picture.convert("RGB"), np.float64) / 127.5 - 1
