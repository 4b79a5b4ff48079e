"""M-RoPE positions of one sample: time, height and width of every token.

Text counts upward on all three axes. A picture stands still in time and spans its merged grid in height and width; the
next token starts after the longer side. A video is one picture per frame group, for a timestamp stands before each
(Qwen3-VL, `Qwen3VLModel.get_rope_index` in transformers/models/qwen3_vl/modeling_qwen3_vl.py, which this equals).

Shapes: L tokens, M media.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded

TEXT, IMAGE, VIDEO = 0, 1, 2  # `mm_token_type_ids`


def positions(encoded: Encoded, merge: int) -> NDArray[np.int64]:
    """Positions (3, L) of a sample; `merge` is the side of the patch square that one token covers (2 in Qwen3-VL).

    Raises BadInput where the runs of media tokens are not the runs that the grids call for.
    """
    grids = {IMAGE: iter(_frames(encoded.image_grid, 1)), VIDEO: iter(_frames(encoded.video_grid, 0))}
    rows = np.empty((3, len(encoded)), dtype=np.int64)
    position = 0
    for kind, start, stop in _runs(encoded.types):
        if kind == TEXT:
            rows[:, start:stop] = np.arange(position, position + stop - start)
            position += stop - start
            continue
        t, h, w = next(grids[kind], (0, 0, 0))
        h, w = h // merge, w // merge
        if t * h * w != stop - start:
            raise BadInput(
                f'sample "{encoded.id}": {stop - start} media tokens in a row at token {start}, '
                f"but its grid calls for {t * h * w}; encode the sample again."
            )
        rows[:, start:stop] = position + np.indices((t, h, w)).reshape(3, -1)
        position += max(h, w)
    if left := sum(1 for grid in grids.values() for _ in grid):
        raise BadInput(f'sample "{encoded.id}": {left} media have no tokens in the text; encode the sample again.')
    return rows


def _frames(grid: NDArray[np.int64] | None, whole: int) -> list[tuple[int, int, int]]:
    """Grids in patches that own one run of tokens each: an image whole, a video (`whole` 0) frame by frame."""
    rows = [] if grid is None else grid.tolist()
    return [(t, h, w) for t, h, w in rows] if whole else [(1, h, w) for t, h, w in rows for _ in range(t)]


def _runs(types: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(type, start, stop) of each run of equal token types."""
    bounds = [0, *(np.flatnonzero(np.diff(types)) + 1).tolist(), len(types)]
    return [(int(types[a]), a, b) for a, b in pairwise(bounds) if a < b]
