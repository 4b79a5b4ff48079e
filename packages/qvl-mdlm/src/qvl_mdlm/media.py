"""Pictures and videos, handed out in order to the tokens that stand for them.

Shapes: M media, P rows of pixels (patches; of a swapped tower that takes pictures of one size, pictures).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import first_media

Array = NDArray[Any]


class Media:
    """Pixels (P, ...) and grids (M, 3) of one kind; None and None: there are none."""

    def __init__(self, kind: str, pixels: Array | None, grid: Array | None, merge: int) -> None:
        self._kind, self._merge = kind, merge
        self._pixels, self._grid = pixels, np.zeros((0, 3), np.int64) if grid is None else grid
        self._taken = 0

    def take(self, tokens: int) -> tuple[Array | None, Array | None]:
        """Pixels and grid of the media that fill the next `tokens` tokens. Raises BadInput if none do."""
        if not tokens:
            return None, None
        filled = np.cumsum(self._grid.prod(1) // self._merge**2)
        count = int(np.searchsorted(filled, tokens)) + 1
        if count > len(filled) or filled[count - 1] != tokens:
            self._refuse(
                f"{tokens} {self._kind} tokens stand in a row whose {self._kind}s fill {filled[:count].tolist()}"
            )
        pixels, grid = first_media(self._pixels, self._grid, count)
        assert self._pixels is not None
        assert pixels is not None
        self._pixels, self._grid = self._pixels[len(pixels) :], self._grid[count:]
        self._taken += count
        return pixels, grid

    def check_empty(self) -> None:
        """Raise BadInput if media are left that no row shows."""
        if left := len(self._grid):
            self._refuse(f"{self._taken + left} {self._kind}s are given and {self._taken} stand in the rows")

    def _refuse(self, problem: str) -> None:
        raise BadInput(
            f"data_collator: {problem}; do not cut ids after the processor: create_qwen3_vl_collator leaves out turns."
        )
