"""All pictures of a prompt together have at most the tokens that they may, whatever the processor's own minimum is."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl_core.qwen3vl.tiny import tiny_processor
from qvl_data.errors import BadSample
from qvl_metaquery.budget import sides
from qvl_metaquery.prompts import Prompt, PromptLayout, encode


@pytest.fixture(scope="module")
def released() -> Any:
    """A processor with the budgets of the released Qwen3-VL."""
    processor = tiny_processor(["a red fox"])
    part = processor.image_processor
    part.size = type(part.size)(shortest_edge=65_536, longest_edge=16_777_216)
    return processor


def grid(sizes: list[tuple[int, int]], budget: int | None, processor: Any) -> list[tuple[int, int]]:
    """Rows and columns of tokens of each picture in an encoded prompt, which is as long as they say."""
    prompt = Prompt("both", tuple(Image.new("RGB", size) for size in sizes))
    encoded = encode(prompt, processor, PromptLayout(image_tokens=budget))
    assert encoded.image_grid is not None
    found = [(int(rows) // 2, int(columns) // 2) for _, rows, columns in encoded.image_grid]
    assert (encoded.types == 1).sum() == sum(rows * columns for rows, columns in found)
    return found


side = st.integers(1, 500)
picture_sizes = st.tuples(side, side).filter(lambda size: max(size) <= 200 * min(size))


@settings(max_examples=60, deadline=None)
@given(st.lists(picture_sizes, min_size=1, max_size=6), st.integers(0, 300))
def test_the_budget_holds(released: Any, sizes: list[tuple[int, int]], more: int) -> None:
    budget = len(sizes) + more
    found = grid(sizes, budget, released)
    assert len(found) == len(sizes)
    assert max(rows * columns for rows, columns in found) <= budget // len(sizes)


@pytest.mark.parametrize(
    ("count", "size", "budget", "each"),
    [
        (2, (1000, 625), 1024, (17, 27)),
        (20, (512, 512), 1024, (7, 7)),
        (3, (28, 28), 3, (1, 1)),
        (1, (64, 64), 64, (8, 8)),
    ],
)
def test_shares_below_the_minimum(
    released: Any, count: int, size: tuple[int, int], budget: int, each: tuple[int, int]
) -> None:
    assert grid([size] * count, budget, released) == [each] * count
    assert released.image_processor.size["shortest_edge"] == 65_536


def test_what_is_within_its_share_is_shown_as_ever(released: Any) -> None:
    prompt = Prompt("it", (Image.effect_noise((300, 200), 60).convert("RGB"),))
    ever, budgeted = (encode(prompt, released, PromptLayout(image_tokens=tokens)) for tokens in (None, 1024))
    assert ever.images is not None
    assert budgeted.images is not None
    assert (ever.images == budgeted.images).all()
    assert grid([(300, 200), (1000, 1000)], 200, released)[0] == grid([(300, 200)], None, released)[0]


def test_each_picture_needs_a_token(released: Any) -> None:
    with pytest.raises(BadSample, match=r"^prompt: 3 pictures share 2 tokens, and each needs one; give fewer") as one:
        grid([(64, 64)] * 3, 2, released)
    assert one.value.reason == "too_long"
    with pytest.raises(BadSample, match="aspect ratio over 200") as one:
        grid([(201, 1)], 2, released)
    assert one.value.reason == "media_size"


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)).filter(lambda s: max(s) <= 200 * min(s)), st.integers(1, 4096)
)
def test_the_shape_stays_as_steps_allow(size: tuple[int, int], tokens: int) -> None:
    wide, high = sides(*size, tokens)
    shape = max(size) / min(size)
    assert 1 <= wide * high <= tokens
    assert max(wide, high) <= 200 * min(wide, high)
    short = min(wide, high)
    off = abs(math.log(max(wide, high) / short / shape))
    assert off <= math.log(1 + 0.5 / (shape * short - 0.5)) + 1e-9 or shape * short > tokens // short
