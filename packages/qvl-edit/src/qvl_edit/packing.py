"""Latents as the tokens of the transformer, and back: each 2 x 2 block of C channels becomes a token of 4 C features.

    tokens = torch.cat([pack(target), *map(pack, sources)], 1)      # the target's come first
    velocity = transformer(tokens, ..., img_shapes=shapes(buckets, scale))[0][:, :tokens_of(target)]

Shapes: B samples, C channels, H x W of a latent, N = H W / 4 tokens. A token's features are ordered (channel, row,
column), tokens row by row, as diffusers' Qwen-Image pipelines have them.
"""

from collections.abc import Sequence

from torch import Tensor

from qvl_edit.cut import Bucket, Size

SIDE = 2


def pack(latents: Tensor) -> Tensor:
    """(B, N, 4 C) of (B, C, H, W)."""
    count, channels, height, width = latents.shape
    blocks = latents.reshape(count, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * SIDE * SIDE)


def unpack(tokens: Tensor, size: Size) -> Tensor:
    """(B, C, H, W) of (B, N, 4 C); size is (H, W)."""
    count, _, features = tokens.shape
    height, width = size
    blocks = tokens.reshape(count, height // SIDE, width // SIDE, features // SIDE**2, SIDE, SIDE)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(count, -1, height, width)


def tokens_of(size: Size, scale: int) -> int:
    """Tokens of a picture of so many pixels; scale is a latent's pixels along a side."""
    return (size[0] // (scale * SIDE)) * (size[1] // (scale * SIDE))


def shapes(buckets: Sequence[Bucket], scale: int) -> list[list[tuple[int, int, int]]]:
    """`img_shapes` of a batch: of each sample, frames, rows and columns of tokens of its target and of its sources.

    Raises ValueError for samples of different sizes: the rotary embedding would read the first one's for all of them.
    """
    if len(set(buckets)) > 1:
        found = " and ".join(map(str, sorted(set(buckets))))
        raise ValueError(f"a forward holds samples of one bucket, not {found}")
    patch = scale * SIDE
    return [[(1, height // patch, width // patch) for height, width in bucket.sizes] for bucket in buckets]
