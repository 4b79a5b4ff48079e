"""Processors of a swapped model. For the layout `patches` they are Qwen's own with the encoder's settings; for the
layout `image` they are the two classes here, whose pictures and frames all have one size and one grid.

Token counts follow from the grid as everywhere: prod(grid) / merge_size**2 for each picture.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessorKwargs
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessorInitKwargs

from qvl_core.errors import BadInput
from qvl_vision.config import QVLVisionConfig


class QVLImageProcessorKwargs(Qwen2VLImageProcessorKwargs, total=False):  # type: ignore[call-arg]
    """grid: [height, width] of every picture in patches; [1, N] where the encoder's tokens form no grid."""

    grid: list[int]


class QVLVideoProcessorKwargs(Qwen3VLVideoProcessorInitKwargs, total=False):  # type: ignore[call-arg]
    """grid: as of pictures, for each frame."""

    grid: list[int]


class QVLImageProcessor(Qwen2VLImageProcessor):
    """Pictures resized, without regard to their shape, to the one size that the encoder takes.

    `pixel_values` (n, 3, H, W), `image_grid_thw` (n, 3).
    """

    size = {"height": 224, "width": 224}  # noqa: RUF012
    grid = [16, 16]  # noqa: RUF012
    temporal_patch_size = 1
    merge_size = 1
    valid_kwargs = QVLImageProcessorKwargs

    def resize(self, images: Tensor, size: SizeDict, resample: Any, factor: int, **kwargs: Any) -> Tensor:
        return super(Qwen2VLImageProcessor, self).resize(images, size, resample)

    def patchify(
        self, images: Tensor, patch_size: int, merge_size: int, temporal_patch_size: int
    ) -> tuple[Tensor, int, int]:
        """Pictures stay whole: (n, 1, 3, H, W), which the library joins along the first two."""
        return images[:, None], self.grid[0], self.grid[1]

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: Any = None) -> int:
        return self.grid[0] * self.grid[1]


class QVLVideoProcessor(Qwen3VLVideoProcessor):
    """Frames resized to the one size that the encoder takes.

    `pixel_values_videos` (frames, 3, H, W), `video_grid_thw` (videos, 3).
    """

    size = {"height": 224, "width": 224}  # noqa: RUF012
    grid = [16, 16]  # noqa: RUF012
    temporal_patch_size = 1
    merge_size = 1
    cap_pixels_per_frame = False
    valid_kwargs = QVLVideoProcessorKwargs

    def resize(self, videos: Tensor, size: SizeDict, resample: Any, **kwargs: Any) -> Tensor:
        return super(Qwen3VLVideoProcessor, self).resize(image=videos, size=size, resample=resample)

    def patchify(
        self, videos: Tensor, patch_size: int, merge_size: int, temporal_patch_size: int
    ) -> tuple[Tensor, int, int, int]:
        return videos, videos.shape[1], self.grid[0], self.grid[1]

    def get_num_of_video_patches(self, num_frames: int, height: int, width: int, videos_kwargs: Any = None) -> int:
        return num_frames * self.grid[0] * self.grid[1]


def processor_for(base: Any, vision: QVLVisionConfig, max_tokens: int | None) -> Any:
    """The base's processor with the pictures and videos that the new tower takes; the base's stays as it is.

    max_tokens  of a picture in the layout `patches`; default: those of the encoder's own picture size. A clip keeps the
                base's budget in tokens
    """
    made = copy.copy(base)
    merge, encoders = vision.spatial_merge_size, vision.encoders or []
    if encoders[0]["family"] == "native":
        made.image_processor, made.video_processor = copy.copy(base.image_processor), copy.copy(base.video_processor)
        made.image_processor.merge_size = made.video_processor.merge_size = merge
        if max_tokens is not None:
            _limit(made.image_processor, max_tokens)
        return made
    # Joined encoders normalise each for itself.
    mean, std = ([0.0] * 3, [1.0] * 3) if len(encoders) > 1 else (encoders[0]["mean"], encoders[0]["std"])
    shared: dict[str, Any] = {"patch_size": vision.patch_size, "merge_size": merge, "temporal_patch_size": 1}
    shared |= {"image_mean": mean, "image_std": std}
    videos = base.video_processor
    kept = {name: getattr(videos, name) for name in ("fps", "num_frames", "min_frames", "max_frames")}
    if vision.layout == "image":
        if max_tokens is not None:
            raise BadInput(
                "max_tokens: the pictures of this encoder have one size and always the same tokens; leave it out."
            )
        size = dict(zip(("height", "width"), vision.image_size or [], strict=True))
        made.image_processor = QVLImageProcessor(**shared, size=size, grid=vision.grid)
        made.video_processor = QVLVideoProcessor(**shared, size=size, grid=vision.grid, **kept)
        return made
    old = (videos.patch_size * videos.merge_size) ** 2 * videos.temporal_patch_size
    clip = {name: videos.size[name] // old * (vision.patch_size * merge) ** 2 for name in _EDGES}
    kept |= {"cap_pixels_per_frame": bool(videos.cap_pixels_per_frame), "max_video_tokens": videos.max_video_tokens}
    made.image_processor = Qwen2VLImageProcessor(**shared)
    side = max(max(encoder["size"]) for encoder in encoders)
    _limit(made.image_processor, max_tokens or max(1, (side // (vision.patch_size * merge)) ** 2))
    made.video_processor = Qwen3VLVideoProcessor(**shared, size=clip, **kept)
    return made


def _limit(images: Any, tokens: int) -> None:
    """Give a picture at most so many tokens, and at least a quarter of them: half the side."""
    token = (images.patch_size * images.merge_size) ** 2
    images.size = SizeDict(shortest_edge=max(1, tokens // 4) * token, longest_edge=tokens * token)


_EDGES = ("shortest_edge", "longest_edge")


def as_batch(processor: Any, pictures: list[Any]) -> tuple[Tensor, Tensor]:
    """Pixels and grids of RGB pictures, as the tower takes them."""
    done = processor.image_processor(pictures, return_tensors="pt")
    return torch.as_tensor(done["pixel_values"]), torch.as_tensor(done["image_grid_thw"])
