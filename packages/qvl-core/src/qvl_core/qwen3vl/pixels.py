"""From an encoded sample's patches back to pictures: what the vision tower sees, after resizing and augmentation.

Shapes: P patches of C = 3 * temporal_patch * patch**2 numbers, M media, T frames.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.qwen3vl.encoded import Encoded

Picture = NDArray[np.uint8]  # (H, W, 3)


def pictures(sample: Encoded, processor: Any) -> list[Picture]:
    """The sample's pictures, in order."""
    if sample.images is None or sample.image_grid is None:
        return []
    settings = processor.image_processor
    if sample.images.ndim == 4:  # (M, 3, H, W), of a swapped tower
        return [_bytes(image.transpose(1, 2, 0), settings) for image in sample.images]
    return [frames[0] for frames in _unpatched(sample.images, sample.image_grid, settings)]


def frames(sample: Encoded, processor: Any) -> list[Picture]:
    """Of all videos, the first frame of each group that shares its patches: one for each time stamp."""
    if sample.videos is None or sample.video_grid is None:
        return []
    settings = processor.video_processor
    clips = _unpatched(sample.videos, sample.video_grid, settings)
    return [frame for clip in clips for frame in clip[:: settings.temporal_patch_size]]


def _unpatched(patches: NDArray[np.float32], grid: NDArray[np.int64], settings: Any) -> Iterator[NDArray[np.uint8]]:
    """(T, H, W, 3) of each medium; patches lie merge block by merge block."""
    side, merge, deep = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    start = 0
    for t, h, w in grid.tolist():
        block = patches[start : start + t * h * w]
        start += t * h * w
        block = block.reshape(t, h // merge, w // merge, merge, merge, 3, deep, side, side)
        yield _bytes(block.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(t * deep, h * side, w * side, 3), settings)


def _bytes(pixels: NDArray[np.float32], settings: Any) -> NDArray[np.uint8]:
    """Normalised numbers (..., 3) as bytes."""
    mean, std = (np.asarray(value, np.float32) for value in (settings.image_mean, settings.image_std))
    return np.rint(np.clip((pixels * std + mean) * 255, 0, 255)).astype(np.uint8)
