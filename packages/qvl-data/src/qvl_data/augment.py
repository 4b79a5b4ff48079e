"""Augmentation as pure functions: the same key always gives the same picture."""

import numpy as np
from PIL import Image

from .order import mix


def shift(picture: Image.Image, pixels: int, *key: int) -> Image.Image:
    """Move an RGB picture by -pixels .. +pixels in x and y, decided by `key`; uncovered edges repeat the border."""
    if pixels == 0:
        return picture
    dx, dy = (mix(*key, axis) % (2 * pixels + 1) - pixels for axis in (0, 1))
    width, height = picture.size
    columns = np.clip(np.arange(width) - dx, 0, width - 1)
    rows = np.clip(np.arange(height) - dy, 0, height - 1)
    return Image.fromarray(np.asarray(picture).take(rows, axis=0).take(columns, axis=1))
