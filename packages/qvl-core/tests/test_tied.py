"""A matrix that is both embedding and head: its gradient is that of plain autograd, from both uses."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from qvl_core.qwen3vl import tied
from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.loss import label_states, next_token_loss
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor


def text_batch(labelled: int) -> Batch:
    ids = np.array([5, 5, 9, 5, 30, 9])  # rows that are read more than once
    labels = np.where(np.arange(6) >= 6 - labelled, ids, -100)
    sample = Encoded("a", ids, labels, np.zeros(6, dtype=np.int64))
    return collate([sample, sample], packing=True, merge=2, pad_id=0)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("labelled", [3, 0])
def test_gradient_is_that_of_plain_autograd(same: bool, labelled: int) -> None:
    model = tiny_model(tiny_processor().tokenizer, tied=same).double()
    batch, table = text_batch(labelled), model.get_input_embeddings()
    with tied.lookup(model) as waiting:
        assert (waiting is not None) == same

    logits = model.lm_head(label_states(model, batch))
    cross_entropy(logits, batch.targets, reduction="sum").backward()
    plain, table.weight.grad = table.weight.grad, None

    for times in (1, 2):  # a second micro-batch adds to the first
        (next_token_loss(model, batch) * 0.5).backward()
        torch.testing.assert_close(table.weight.grad, times * 0.5 * plain, atol=1e-12, rtol=1e-9)


def test_lookup_is_left_as_it_was() -> None:
    model = tiny_model(tiny_processor().tokenizer)
    next_token_loss(model, text_batch(3)).backward()
    assert not model.get_input_embeddings()._forward_hooks
    model.get_input_embeddings().requires_grad_(False)
    with tied.lookup(model) as waiting:
        assert waiting is None
