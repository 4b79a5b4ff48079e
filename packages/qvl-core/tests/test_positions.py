"""M-RoPE positions equal the library's for every mixture of text, images and videos."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.positions import IMAGE, TEXT, VIDEO, positions
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor

MERGE = 2
side = st.integers(1, 4).map(lambda n: n * MERGE)
image = st.tuples(st.just(IMAGE), st.just(1), side, side)
video = st.tuples(st.just(VIDEO), st.integers(1, 3), side, side)
text = st.tuples(st.just(TEXT), st.integers(1, 5), st.just(0), st.just(0))


@pytest.fixture(scope="module")
def body():
    return tiny_model(tiny_processor().tokenizer).model


def encoded(parts: list[tuple[int, int, int, int]]) -> Encoded:
    """Types and grids of a sample: vision start and end tokens around each run of media tokens."""
    types: list[int] = []
    for kind, t, h, w in parts:
        if kind == TEXT:
            types += [TEXT] * t
        for _ in range({TEXT: 0, IMAGE: 1, VIDEO: t}[kind]):
            types += [TEXT] * (2 if kind == VIDEO else 1) + [kind] * (h * w // MERGE**2) + [TEXT]
    grids = {kind: np.array([part[1:] for part in parts if part[0] == kind]) for kind in (IMAGE, VIDEO)}
    return Encoded(
        "sample",
        ids=np.zeros(len(types), np.int64),
        labels=np.full(len(types), IGNORE),
        types=np.array(types, np.int64),
        image_grid=grids[IMAGE] if len(grids[IMAGE]) else None,
        video_grid=grids[VIDEO] if len(grids[VIDEO]) else None,
    )


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.one_of(text, image, video), min_size=1, max_size=6))
def test_positions_equal_the_librarys(body, parts):
    sample = encoded(parts)
    grids = [None if grid is None else torch.from_numpy(grid) for grid in (sample.image_grid, sample.video_grid)]
    ids, types = torch.from_numpy(sample.ids)[None], torch.from_numpy(sample.types)[None]
    expected, _ = body.get_rope_index(ids, types, *grids)  # (3, 1, L)
    np.testing.assert_array_equal(positions(sample, MERGE), expected[:, 0].numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_grid": np.array([[1, 4, 6]])}, r'sample "a": 4 media tokens in a row at token 1.* calls for 6'),
        ({"image_grid": None}, "calls for 0"),
        ({"image_grid": np.array([[1, 4, 4], [1, 2, 2]])}, "1 media have no tokens"),
    ],
)
def test_media_that_do_not_match_their_tokens_are_named(change, message):
    sample = {"ids": np.zeros(6, np.int64), "labels": np.zeros(6, np.int64), "types": np.array([0, 1, 1, 1, 1, 0])}
    with pytest.raises(BadInput, match=message):
        positions(Encoded("a", **sample, **change), MERGE)
