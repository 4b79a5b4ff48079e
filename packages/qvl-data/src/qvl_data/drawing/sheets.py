"""Many small pictures as one: enlarged with hard edges, row by row, in a red frame where one is wrong."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64  # page pixels of a picture, at most
GAP = 3
GOOD, BAD = (255, 255, 255), (214, 69, 65)


def sheet(images: Sequence[Image.Image], right: NDArray[np.bool_], columns: int) -> Image.Image:
    """Square pictures of one size, of at most SIDE pixels, in rows of `columns`; right (D,) says which are."""
    side = SIDE // images[0].width * images[0].width
    cell = side + 2 * GAP
    whole = Image.new("RGB", (columns * cell, -(-len(images) // columns) * cell), GOOD)
    for place, (image, good) in enumerate(zip(images, right, strict=True)):
        left, top = place % columns * cell, place // columns * cell
        whole.paste(GOOD if good else BAD, (left, top, left + cell, top + cell))
        whole.paste(image.resize((side, side), Image.Resampling.NEAREST), (left + GAP, top + GAP))
    return whole
