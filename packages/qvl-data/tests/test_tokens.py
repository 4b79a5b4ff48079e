"""Token arithmetic against transformers' processors: equal on every size, rate and setting."""

from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_data.tokens import Images, Videos

side = st.one_of(st.integers(1, 64), st.integers(1, 20_000), st.integers(1, 700).map(lambda n: n * 16))
budget = st.one_of(st.integers(1, 400).map(lambda tokens: tokens * 1024), st.integers(1024, 20_000_000))


def result(compute, *arguments):
    """What a computation gives, or that it refuses."""
    try:
        return compute(*arguments)
    except ValueError:
        return "refused"


@pytest.fixture(scope="module")
def picture_processor():
    pytest.importorskip("torch", reason="compares with transformers")
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 65_536, "longest_edge": 16_777_216})


@pytest.fixture(scope="module")
def clip_processor():
    pytest.importorskip("torch", reason="compares with transformers")
    from transformers import Qwen3VLVideoProcessor

    return Qwen3VLVideoProcessor(
        size={"shortest_edge": 4_096, "longest_edge": 25_165_824}, cap_pixels_per_frame=False, num_frames=None
    )


@settings(max_examples=300, deadline=None)
@given(side, side, st.tuples(budget, budget).map(sorted), st.sampled_from([(16, 2), (14, 2), (16, 1)]))
def test_pictures(picture_processor, width, height, limits, patches):
    ours = Images(*limits, *patches)
    options = dict(zip(("min_pixels", "max_pixels", "patch_size", "merge_size"), (*limits, *patches), strict=True))
    theirs = result(picture_processor.get_number_of_image_patches, height, width, options)
    assert result(ours.patches, width, height) == theirs


def test_ten_thousand_sizes(picture_processor, clip_processor):
    clip_processor.max_video_tokens = 768
    random = Random(0)
    for _ in range(10_000):
        width, height = (int(2 ** random.uniform(0, 14)) for _ in range(2))
        frames = random.randint(1, 768)
        theirs = result(picture_processor.get_number_of_image_patches, height, width, {})
        assert result(Images().patches, width, height) == theirs
        theirs = result(clip_processor.get_num_of_video_patches, frames, height, width)
        assert result(Videos().patches, frames, width, height) == theirs


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 900), side, side, st.tuples(budget, budget).map(sorted), st.none() | st.integers(1, 1000))
def test_clips(clip_processor, frames, width, height, limits, frame_tokens):
    low, high = limits
    ours = Videos(low, high, frame_tokens=frame_tokens)
    clip_processor.max_video_tokens = frame_tokens
    options = {"size": {"shortest_edge": low, "longest_edge": high}, "cap_pixels_per_frame": frame_tokens is not None}
    theirs = result(clip_processor.get_num_of_video_patches, frames, height, width, options)
    assert result(ours.patches, frames, width, height) == theirs


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 100_000),
    st.none() | st.floats(0.01, 1000),
    st.none() | st.floats(0.01, 120),
    st.none() | st.integers(1, 900),
    st.none() | st.floats(0.1, 60),
    st.integers(1, 32),
    st.integers(1, 900),
)
def test_which_frames_are_shown(clip_processor, total, fps, default, count, wanted, least, most):
    ours = Videos(fps=default, frames=count, min_frames=least, max_frames=most)
    clip_processor.fps, clip_processor.min_frames, clip_processor.max_frames = default, least, most
    metadata = SimpleNamespace(total_num_frames=total, fps=fps)
    theirs = result(lambda: clip_processor.sample_frames(metadata, num_frames=count, fps=wanted or default).tolist())
    assert result(ours.sample, total, fps, wanted) == theirs


def test_the_defaults_are_those_of_the_released_models():
    assert Images().tokens(640, 480) == 300
    assert Images().tokens(1, 1) == 64
    assert Images().resized(8192, 8192) == (4096, 4096)
    assert Videos().sample(300, 30.0) == [
        0,
        16,
        31,
        47,
        63,
        79,
        94,
        110,
        126,
        142,
        157,
        173,
        189,
        205,
        220,
        236,
        252,
        268,
        283,
        299,
    ]
    assert Videos().tokens(20, 640, 480) == 3000


def test_what_the_processors_refuse_is_said_in_our_words():
    with pytest.raises(ValueError, match=r"2001 x 10 pixels is an aspect ratio over 200, .* crop it"):
        Images().tokens(2001, 10)
    with pytest.raises(ValueError, match="a video of 1 frame, of which Qwen3-VL needs at least 2"):
        Videos().tokens(1, 64, 64)


@settings(max_examples=200, deadline=None)
@given(st.integers(32, 3000), st.integers(32, 3000), st.integers(8, 500))
def test_a_budget_in_tokens_is_kept_by_ordinary_pictures(width, height, tokens):
    if max(width, height) < 8 * min(width, height):
        assert Images(1024, tokens * 1024).tokens(width, height) <= tokens
