"""Budgets of pictures and clips, as processors take them."""

import logging

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.budgets import apply_media
from qvl_core.qwen3vl.tiny import tiny_processor
from qvl_core.recipe.blocks import Media


def grid(processor, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches of a picture of this height and width."""
    picture = Image.fromarray(np.zeros((*size, 3), dtype=np.uint8))
    out = processor(text=["<|image_pad|>"], images=[picture], return_tensors="np")
    _, height, width = out["image_grid_thw"][0]
    assert len(out["pixel_values"]) == height * width == processor.image_processor.get_number_of_image_patches(*size)
    assert (out["input_ids"] == processor.image_token_id).sum() == height * width // 4
    return int(height), int(width)


def clip_tokens(processor, frames: int, size: tuple[int, int]) -> int:
    clip = np.zeros((frames, *size, 3), dtype=np.uint8)
    metadata = [{"total_num_frames": frames, "fps": 2.0, "frames_indices": list(range(frames))}]
    out = processor.video_processor([clip], video_metadata=metadata, do_sample_frames=False)
    tokens = int(np.prod(np.asarray(out["video_grid_thw"])[0])) // 4
    assert processor.video_processor.get_num_of_video_patches(frames, *size) == 4 * tokens
    return tokens


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (200, 300)])
@pytest.mark.parametrize(("low", "high"), [(None, 16384), (65536, 131072), (8192, None)])
def test_pixels(size: tuple[int, int], low: int | None, high: int | None):
    processor = tiny_processor()
    before = processor.image_processor.size
    apply_media(processor, Media(min_pixels=low, max_pixels=high))
    low, high = low or before["shortest_edge"], high or before["longest_edge"]
    height, width = grid(processor, size)
    assert low <= 16 * height * 16 * width <= high


@pytest.mark.parametrize("tokens", [4, 9, 31, 64])
def test_tokens_of_a_picture(tokens: int):
    processor = tiny_processor()
    apply_media(processor, Media(image_tokens=tokens))
    for size in ((640, 480), (200, 900), (64, 64)):
        height, width = grid(processor, size)
        assert height * width // 4 <= tokens
    height, width = grid(processor, (2000, 2000))
    assert height * width // 4 == int(tokens**0.5) ** 2


def test_tokens_of_a_clip_and_of_its_frames():
    processor = tiny_processor()
    apply_media(processor, Media(video_tokens=48))
    assert clip_tokens(processor, 8, (640, 480)) == 48
    assert clip_tokens(processor, 16, (300, 300)) == 32
    apply_media(processor, Media(frame_tokens=6))
    assert clip_tokens(processor, 8, (640, 960)) == 4 * 6
    assert clip_tokens(processor, 4, (640, 960)) == 2 * 6


def test_frames_of_a_video_file():
    processor = tiny_processor()
    apply_media(processor, Media(fps=1.0, min_frames=2, max_frames=10))
    video = processor.video_processor
    assert (video.fps, video.min_frames, video.max_frames) == (1.0, 2, 10)
    with pytest.raises(BadInput, match=r"min_frames \(12\) is over max_frames \(10\); set both"):
        apply_media(processor, Media(min_frames=12))


def test_old_budgets_are_converted_aloud(caplog: pytest.LogCaptureFixture):
    processor = tiny_processor()
    with caplog.at_level(logging.WARNING):
        apply_media(processor, Media(min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28))
    assert processor.image_processor.size["shortest_edge"] == 4 * 32 * 32
    assert processor.image_processor.size["longest_edge"] == 64 * 32 * 32
    high, low = caplog.messages
    assert low == "media.min_pixels: 3136 is 4 old tokens of 28 x 28 pixels; taken as 4 tokens of today, 4096 pixels."
    assert high == (
        "media.max_pixels: 50176 is 64 old tokens of 28 x 28 pixels; taken as 64 tokens of today, 65536 pixels; "
        "if you mean 50176 pixels, write media.image_tokens: 49."
    )
    caplog.clear()
    apply_media(processor, Media(min_pixels=4096, max_pixels=1_048_576))
    assert not caplog.messages


def test_budgets_that_exclude_each_other():
    with pytest.raises(BadInput, match=r"smallest picture \(131072 pixels\) is over the largest \(65536\)"):
        apply_media(tiny_processor(), Media(min_pixels=131072))
    with pytest.raises(BadInput, match=r"smallest clip \(4096 pixels\) is over the largest \(2048\)"):
        apply_media(tiny_processor(), Media(video_tokens=1))
    with pytest.raises(ValidationError, match="say the same; keep one"):
        Media(max_pixels=4096, image_tokens=4)
