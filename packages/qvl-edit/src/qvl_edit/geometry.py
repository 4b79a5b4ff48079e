"""The sizes that pictures are given: one rule for checking data, for embeddings, for training and for editing.

    geometry = Geometry(area=512 * 512, vl_area=profile.vl_area)
    geometry.fit((1080, 1920), [(1080, 1920)])     # Bucket(target=(384, 672), sources=((384, 672),))

A picture is resized as a whole to sides that the model takes; nothing is cut away and nothing is drawn at random, so
what lies on one place of source and target still does. Rounding of the sides stretches a picture, at most by `stretch`.

    area                  64 K px   256 K px   1 M px
    stretched, to 1:4     0.141     0.066      0.038       the worst shape there is (4:3: 0.036, 0.036, 0.009)

All sizes are (height, width).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.errors import BadSample
from qvl_edit.cut import Bucket, Size
from qvl_edit.profile import MEGAPIXEL

STEP = 32  # sides are multiples of it, in all pipelines


@dataclass(frozen=True)
class Geometry:
    """What decides sizes.

    area         pixels of a target; a picture's shape decides which of about so many
    source_area  pixels of a source for the autoencoder; None: as a target
    vl_area      pixels of a source for the text encoder; None: as for the autoencoder
    stretch      how far rounding may change the ratio of a picture's sides
    step         sides are multiples of it
    token        those that are asked for are multiples of it: two latent places
    seen         fewest and most pixels that the text encoder's processor leaves as they are, if it has to
    """

    area: int = MEGAPIXEL
    source_area: int | None = None
    vl_area: int | None = MEGAPIXEL
    stretch: float = 0.07
    step: int = STEP
    token: int = 16
    seen: tuple[int, int] | None = None

    def fit(self, target: Size, sources: Sequence[Size] = (), name: str = "") -> Bucket:
        """Sizes for the autoencoder.

        The target has the shape of the last source, in which it is going to be asked for, unless that would stretch it
        too far: then its own. Raises BadSample for a picture that would be stretched too far, with `name` as its place.
        """
        shapes = [*sources[-1:], target]
        fitted = next((size for one in shapes if self._bounded(target, size := self._sides(self.area, one))), None)
        if fitted is None:
            raise self._refused(target, self._sides(self.area, target), name)
        return Bucket(fitted, tuple(self._of_source(source, name) for source in sources))

    def vl(self, source: Size, name: str = "") -> Size:
        """The size for the text encoder, which may round it once more to whole tokens. Raises BadSample."""
        if self.vl_area is None:
            return self._of_source(source, name)
        fitted = sides(self.vl_area, source[1] / source[0])
        if min(fitted) == 0:
            raise self._refused(source, fitted, name)
        return fitted

    @property
    def shown(self) -> tuple[int, int]:
        """What decides the sizes that the text encoder is shown: pixels, and of what sides are multiples."""
        if self.vl_area is None:
            return self.source_area or self.area, self.step
        return self.vl_area, STEP

    def asked(self, sources: Sequence[Size], height: int | None = None, width: int | None = None) -> Bucket:
        """Sizes of what is drawn, by default of the last source's shape, and of its sources. Raises BadSample."""
        target = self.output(sources[-1] if sources else (1, 1), height, width)
        return Bucket(target, tuple(self._of_source(source, "") for source in sources))

    def output(self, last_source: Size, height: int | None = None, width: int | None = None) -> Size:
        """Size of what is drawn, as the pipelines have it; given sides are cut to whole tokens. Raises BadSample, and
        BadInput for a side that is less than one."""
        for name, side in (("height", height), ("width", width)):
            if side is not None and side < self.token:
                raise BadInput(f"{name}: {side} pixels are less than one token; ask for {self.token} or more.")
        own = self._sides(self.area, last_source)
        size = (self._floored(height or own[0]), self._floored(width or own[1]))
        if min(size) == 0:
            raise self._refused(last_source, size, "")
        return size

    def _floored(self, side: int) -> int:
        return side // self.token * self.token

    def _of_source(self, source: Size, name: str) -> Size:
        fitted = self._sides(self.source_area or self.area, source)
        if not self._bounded(source, fitted):
            raise self._refused(source, fitted, name)
        if self.seen and not self.seen[0] <= fitted[0] * fitted[1] <= self.seen[1]:
            problem = (
                f"{source[1]} x {source[0]} pixels become {fitted[1]} x {fitted[0]}, and the text encoder's processor "
                f"takes {self.seen[0]:,} to {self.seen[1]:,} pixels as they are; set another pictures.size"
            )
            raise BadSample("edit_size", problem, name)
        return fitted

    def _sides(self, area: int, shape: Size) -> Size:
        return sides(area, shape[1] / shape[0], self.step)

    def _bounded(self, size: Size, fitted: Size) -> bool:
        return min(fitted) > 0 and abs(stretched(size, fitted)) <= self.stretch

    def _refused(self, size: Size, fitted: Size, name: str) -> BadSample:
        problem = (
            f"{size[1]} x {size[0]} pixels would become {fitted[1]} x {fitted[0]}, which changes its shape by more "
            f"than {self.stretch:.0%}; crop it, or train with a larger area"
        )
        return BadSample("edit_shape", problem, name)


def sides(area: int, ratio: float, step: int = STEP) -> Size:
    """Height and width of about `area` pixels; `ratio` is width / height. (`calculate_dimensions` of diffusers.)"""
    width = math.sqrt(area * ratio)
    height = width / ratio
    return round(height / step) * step, round(width / step) * step


def stretched(size: Size, fitted: Size) -> float:
    """By how much the ratio of width to height grows."""
    return (fitted[1] / fitted[0]) / (size[1] / size[0]) - 1


def resized(picture: Image.Image, size: Size) -> Image.Image:
    """As diffusers resizes pictures."""
    return picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def numbers(picture: Image.Image) -> NDArray[np.float32]:
    """(3, H, W) in [-1, 1] of an RGB picture, as diffusers has them."""
    values: NDArray[np.float32] = np.asarray(picture, np.float32) / np.float32(255)
    return (np.float32(2) * values - np.float32(1)).transpose(2, 0, 1)
