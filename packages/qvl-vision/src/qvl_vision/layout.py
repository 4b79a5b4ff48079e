"""Between the patches that a Qwen processor writes and the pictures that an encoder takes: pure reordering.

Qwen's processors write patches square by square: the r x r patches that will become one token lie next to each other
(Qwen2VLImageProcessor.patchify in transformers/models/qwen2_vl/image_processing_qwen2_vl.py). Encoders take whole
pictures and give their tokens row by row.

Shapes: n pictures of h x w patches, r side of a square (`spatial_merge_size`), p side of a patch in pixels, D width.
"""

from torch import Tensor


def to_pictures(patches: Tensor, h: int, w: int, patch: int, merge: int) -> Tensor:
    """Patches (n, h*w, 3*p*p), square by square, as pictures (n, 3, h*p, w*p). Exact: only the order changes."""
    n, r, p = len(patches), merge, patch
    squares = patches.reshape(n, h // r, w // r, r, r, 3, p, p)
    return squares.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(n, 3, h * p, w * p)


def to_squares(tokens: Tensor, h: int, w: int, merge: int) -> Tensor:
    """Tokens (n, h*w, D), row by row, in the order of the squares."""
    if merge == 1:
        return tokens
    n, r = len(tokens), merge
    grid = tokens.reshape(n, h // r, r, w // r, r, -1)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(n, h * w, -1)
