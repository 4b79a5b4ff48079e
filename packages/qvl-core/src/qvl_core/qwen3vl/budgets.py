"""How large pictures and clips may become: budgets in tokens or pixels, set on a processor.

Pure arithmetic on `qvl_core.recipe.blocks.Media`; works on transformers' processors and on those of
`qvl_data.processor`, and needs neither torch nor transformers.
"""

import logging
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Media

OLD_TOKEN = 28 * 28
"""Pixels of one token of Qwen2-VL and Qwen2.5-VL, in which old scripts state their budgets."""


def apply_media(processor: Any, media: Media) -> None:
    """Set the budgets of a processor's pictures and clips; what is not given stays the checkpoint's.

    A budget in old tokens of 28 x 28 pixels is taken as that many tokens, and a warning says so. Raises BadInput for
    budgets that exclude each other, or are set where every picture has one size (a swapped tower's).
    """
    images, videos = processor.image_processor, processor.video_processor
    if "shortest_edge" in images.size:
        _set_budgets(images, videos, media)
    elif given := [key for key in _BUDGETS if getattr(media, key) is not None]:
        raise BadInput(f"media.{given[0]}: every picture of this model has one size and as many tokens; remove it.")
    if media.fps is not None:
        videos.fps, videos.num_frames = media.fps, None
    least = media.min_frames or videos.min_frames
    most = media.max_frames or videos.max_frames
    if least > most:
        raise BadInput(f"media: min_frames ({least}) is over max_frames ({most}); set both.")
    videos.min_frames, videos.max_frames = least, most


_BUDGETS = ("max_pixels", "min_pixels", "image_tokens", "video_tokens", "frame_tokens")


def _set_budgets(images: Any, videos: Any, media: Media) -> None:
    token = (images.patch_size * images.merge_size) ** 2
    high = _pixels("max_pixels", media.max_pixels, token)
    if media.image_tokens is not None:
        high = media.image_tokens * token
    _set_size(images, _pixels("min_pixels", media.min_pixels, token), high, "picture")

    if media.video_tokens is not None:
        token = (videos.patch_size * videos.merge_size) ** 2 * videos.temporal_patch_size
        _set_size(videos, None, media.video_tokens * token, "clip")
    if media.frame_tokens is not None:
        videos.cap_pixels_per_frame, videos.max_video_tokens = True, media.frame_tokens


def _pixels(key: str, value: int | None, token: int) -> int | None:
    """A budget in pixels as it is meant today: multiples of 28 x 28 stand for that many tokens."""
    if value is None or value % OLD_TOKEN or token == OLD_TOKEN:
        return value
    count = value // OLD_TOKEN
    meant = f"; if you mean {value} pixels, write media.image_tokens: {value // token}" if key == "max_pixels" else ""
    logging.getLogger(__name__).warning(
        "media.%s: %d is %d old tokens of 28 x 28 pixels; taken as %d tokens of today, %d pixels%s.",
        *(key, value, count, count, count * token, meant),
    )
    return count * token


def _set_size(part: Any, low: int | None, high: int | None, what: str) -> None:
    """The budgets live in `size`; `min_pixels` and `max_pixels` as attributes do nothing since transformers 5."""
    low = low or part.size["shortest_edge"]
    high = high or part.size["longest_edge"]
    if low > high:
        raise BadInput(f"media: the smallest {what} ({low} pixels) is over the largest ({high}); set both budgets.")
    part.size = type(part.size)(shortest_edge=low, longest_edge=high)
