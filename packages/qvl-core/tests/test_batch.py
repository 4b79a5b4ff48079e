"""What collate lays out: every label is predicted by the token before it, inside its own document."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.positions import positions

PAD, IMAGE = 999, 500


def sample(name: str, labelled: list[bool], pictures: int = 0) -> Encoded:
    """Token ids count up from 0; text tokens follow pictures of 2 x 3 tokens between start and end tokens."""
    types = np.array([*([0, *[1] * 6, 0] * pictures), *[0] * len(labelled)])
    ids = np.where(types == 1, IMAGE, np.arange(len(types)))
    labels = np.where([False] * (8 * pictures) + labelled, ids, IGNORE)
    grid = np.array([[1, 4, 6]] * pictures) if pictures else None
    pixels = np.full((24 * pictures, 4), len(name), np.float32) if pictures else None
    return Encoded(name, ids, labels, types, pixels, grid)


samples = st.lists(
    st.builds(sample, st.text("ab", max_size=3), st.lists(st.booleans(), min_size=1, max_size=9), st.integers(0, 2)),
    min_size=1,
    max_size=5,
)


@given(samples=samples, packing=st.booleans())
def test_labels_are_predicted_inside_their_document(samples, packing):
    batch = collate(samples, packing, 2, PAD)
    assert batch.count == sum(one.count for one in samples)
    assert batch.tokens == sum(map(len, samples))
    flat = batch.input_ids.flatten()
    document = torch.arange(len(samples)).repeat_interleave(torch.tensor(batch.documents))
    if not packing:  # (B, T): the row is the document
        document = torch.arange(len(samples))[:, None].expand(batch.input_ids.shape).flatten()
    assert torch.equal(flat[batch.label_rows + 1], batch.targets)
    assert torch.equal(document[batch.label_rows], batch.row_of_label)
    assert torch.equal(document[batch.label_rows + 1], batch.row_of_label)
    expected = [one.labels[1:][one.labels[1:] != IGNORE] for one in samples]
    assert batch.targets.tolist() == np.concatenate(expected).tolist()


@given(samples=samples)
def test_packed_rows_hold_the_samples_end_to_end(samples):
    batch = collate(samples, True, 2, PAD)
    assert batch.attention_mask is None
    assert batch.input_ids.shape == (1, batch.tokens)
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.cu_seqlens.diff().tolist() == list(batch.documents) == [len(one) for one in samples]
    for one, start, stop in zip(samples, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
        assert batch.input_ids[0, start:stop].tolist() == one.ids.tolist()
        assert batch.position_ids[0, 0, start:stop].tolist() == list(range(len(one)))
        assert batch.position_ids[1:, 0, start:stop].tolist() == positions(one, 2).tolist()
    if any(one.images is not None for one in samples):
        pictures = sum(len(one.image_grid) for one in samples if one.image_grid is not None)
        assert batch.image_cu_seqlens.tolist() == [24 * i for i in range(pictures + 1)]
        assert batch.image_max_seqlen == 24
        assert len(batch.pixel_values) == 24 * pictures


@given(samples=samples)
def test_padded_rows_are_padded_on_the_right(samples):
    batch = collate(samples, False, 2, PAD)
    width = max(map(len, samples))
    assert batch.position_ids.shape == (4, len(samples), width)
    for i, one in enumerate(samples):
        rest = width - len(one)
        assert batch.input_ids[i].tolist() == one.ids.tolist() + [PAD] * rest
        assert batch.attention_mask[i].tolist() == [1] * len(one) + [0] * rest
        assert batch.types[i].tolist() == one.types.tolist() + [0] * rest


def test_inputs_are_the_bodys_arguments():
    one, two = sample("a", [False, True], pictures=1), sample("b", [True] * 3)
    packed = collate([one, two], True, 2, PAD).inputs()
    vision = {"pixel_values", "image_grid_thw", "image_cu_seqlens", "image_max_seqlen"}
    common = {"input_ids", "position_ids", "mm_token_type_ids"}
    lengths = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert set(packed) == common | vision | lengths
    assert packed["max_length_q"] == 10
    assert set(collate([two], False, 2, PAD).inputs()) == common | {"attention_mask"}


def test_moving_a_batch_moves_every_tensor_and_nothing_else():
    batch = collate([sample("a", [False, True], pictures=1), sample("b", [True] * 3)], False, 2, PAD)
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    for name in Batch.__slots__:
        value, after = getattr(batch, name), getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert after.is_meta
            assert after.shape == value.shape
        else:
            assert after == value
    again = pickle.loads(pickle.dumps(batch))  # workers send batches to the training process
    assert torch.equal(again.position_ids, batch.position_ids)


def test_an_empty_batch_is_refused():
    with pytest.raises(BadInput, match="at least one sample"):
        collate([], True, 2, PAD)
