"""Pictures as numbers, cut to a square.

Shapes: B pictures of 3 x S x S, in [-1, 1].
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def square(picture: Image.Image, size: int) -> NDArray[np.float32]:
    """(3, size, size): the shorter side resized to `size`, the middle of the longer one kept."""
    width, height = picture.size
    factor = size / min(width, height)
    if factor != 1:
        fitted = (max(size, round(width * factor)), max(size, round(height * factor)))
        picture = picture.resize(fitted, Image.Resampling.LANCZOS)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    cut = picture.convert("RGB").crop((left, top, left + size, top + size))
    return (np.asarray(cut, np.float32) / 127.5 - 1).transpose(2, 0, 1)


def stacked(arrays: Sequence[NDArray[np.float32]]) -> Tensor:
    """(B, ...) of arrays of one shape."""
    return torch.from_numpy(np.stack(arrays))
