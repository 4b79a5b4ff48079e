"""One encoded sample, as every method receives it: plain NumPy, so that data code needs no torch.

Shapes: L tokens, P vision patches, C = channels * temporal_patch * patch**2 numbers per patch, M media.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = -100  # label of a token that is not learned from; the value torch and transformers ignore by default


def runs(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Bounds of the runs of true entries of (L,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chat as token ids, labels and pixels.

    ids      (L,) int64    token ids, media placeholders expanded
    labels   (L,) int64    ids where the sample is learned from, else IGNORE; not shifted
    types    (L,) int64    0 text, 1 image, 2 video (`mm_token_type_ids` of transformers)
    weights  (L,) float32 or None     factor of each label in the loss; None: 1 for all
    images   (P, C) float32 or None   patches of all images, in order (`pixel_values`); of a swapped tower that takes
                                      pictures of one size: (M, 3, H, W)
    image_grid (M, 3) int64 or None   time, height, width in patches of each image (`image_grid_thw`)
    videos, video_grid                the same for videos (`pixel_values_videos`, `video_grid_thw`)
    """

    id: str
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    types: NDArray[np.int64]
    images: NDArray[np.float32] | None = None
    image_grid: NDArray[np.int64] | None = None
    videos: NDArray[np.float32] | None = None
    video_grid: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def count(self) -> int:
        """Number of labels that the next-token loss sees: the first token is never predicted.

        It is the loss's denominator whatever the weights: an answer of weight w counts w times what it would, and what
        the others count does not depend on it.
        """
        return int((self.labels[1:] != IGNORE).sum())


def first_media(
    pixels: NDArray[Any] | None, grid: NDArray[np.int64] | None, count: int
) -> tuple[NDArray[Any] | None, NDArray[np.int64] | None]:
    """Pixels and grid (M, 3) of the first `count` media of a kind; None without any."""
    if pixels is None or grid is None or count == 0:
        return None, None
    whole = len(pixels) == len(grid)  # a swapped tower's pictures of one size, one each
    return pixels[: count if whole else int(grid[:count].prod(axis=1).sum())], grid[:count]
