"""What happens to the pictures of one sample, and to the regions in them: plain numbers, no randomness."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..sample import Region


@dataclass(frozen=True)
class Augmentation:
    """What happens to every picture of one sample, in this order: crop, resize, flip, shift, colours.

    window  x, y, side: the crop keeps `side` of width and height and lies at x, y (0..1) of the room that this leaves
    shift   pixels to the right and down
    """

    window: tuple[float, float, float] = (0.0, 0.0, 1.0)
    resize: float = 1.0
    flip: bool = False
    shift: tuple[int, int] = (0, 0)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of a picture of this width and height afterwards."""
        left, top, right, bottom = self._window(size)
        return max(1, round((right - left) * self.resize)), max(1, round((bottom - top) * self.resize))

    def picture(self, picture: Image.Image) -> Image.Image:
        """The changed RGB picture."""
        window, size = self._window(picture.size), self.size(picture.size)
        if size != (window[2] - window[0], window[3] - window[1]):
            picture = picture.resize(size, Image.Resampling.BICUBIC, box=window)
        elif size != picture.size:
            picture = picture.crop(window)
        if self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._coloured(_shifted(picture, *self.shift))

    def region(self, region: Region, size: tuple[int, int]) -> Region:
        """A region of a picture of this width and height, moved as its pixels are; it may leave the picture."""
        left, top, right, bottom = self._window(size)
        width, height = self.size(size)
        xs = [(x - left) * (width / (right - left)) for x in region.xy[::2]]
        ys = [(y - top) * (height / (bottom - top)) + self.shift[1] for y in region.xy[1::2]]
        if self.flip:
            xs = [width - x for x in xs]
        xs = [x + self.shift[0] for x in xs]
        if self.flip and region.kind == "box":
            xs.reverse()
        return region.model_copy(update={"xy": tuple(value for point in zip(xs, ys, strict=True) for value in point)})

    def _window(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the crop in pixels."""
        x, y, part = self.window
        width, height = (max(1, round(side * part)) for side in size)
        left, top = round(x * (size[0] - width)), round(y * (size[1] - height))
        return left, top, left + width, top + height

    def _coloured(self, picture: Image.Image) -> Image.Image:
        if (self.brightness, self.contrast) != (1.0, 1.0):
            values = (np.arange(256) * self.brightness - 127.5) * self.contrast + 127.5
            picture = picture.point(np.clip(np.rint(values), 0, 255).astype(int).tolist() * 3)
        if self.saturation != 1.0:
            picture = Image.blend(picture.convert("L").convert("RGB"), picture, self.saturation)
        return picture


def _shifted(picture: Image.Image, dx: int, dy: int) -> Image.Image:
    """The picture moved to the right and down; uncovered edges repeat the border."""
    if (dx, dy) == (0, 0):
        return picture
    width, height = picture.size
    columns = np.clip(np.arange(width) - dx, 0, width - 1)
    rows = np.clip(np.arange(height) - dy, 0, height - 1)
    return Image.fromarray(np.asarray(picture).take(rows, axis=0).take(columns, axis=1))
