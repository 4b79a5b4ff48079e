"""The factor of each label: a gradient of weight w is w times as large, however the batch is laid out."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.loss import next_token_loss, token_losses
from qvl_core.qwen3vl.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model(TOKENIZER, seed=1)


def sample(seed: int, answers: list[tuple[int, float]]) -> Encoded:
    """Three tokens of prompt before each answer of (tokens, weight)."""
    rng = np.random.default_rng(seed)
    weights = np.concatenate([[0.0] * 3 + [weight] * tokens for tokens, weight in answers]).astype(np.float32)
    ids = rng.integers(5, 250, len(weights))
    weighted = None if set(weights.tolist()) <= {0, 1} else weights
    return Encoded(str(seed), ids, np.where(weights > 0, ids, IGNORE), np.zeros_like(ids), weights=weighted)


SAMPLES = [sample(0, [(4, 0.5), (2, 3.0)]), sample(1, [(5, 1.0)]), sample(2, [(3, 0.0), (6, 0.25)])]


def gradients(model, batches):
    model.zero_grad()
    total = sum(next_token_loss(model, batch) for batch in batches)
    total.backward()
    return total.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for name, grad in found[1].items():
        torch.testing.assert_close(grad, expected[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_is_the_sum_of_its_samples(model, packing):
    single = gradients(model, [collate([one], packing, 2, 0) for one in SAMPLES])
    assert_close(gradients(model, [collate(SAMPLES, packing, 2, 0)]), single)


@pytest.mark.parametrize("packing", [True, False])
def test_an_answer_of_weight_w_counts_w_times(model, packing):
    """The loss is linear in the weights: 0.5 and 3 times what each answer gives alone, under weight 1."""
    whole = SAMPLES[0]
    alone = [replace(whole, labels=np.where(whole.weights == w, whole.ids, IGNORE), weights=None) for w in (0.5, 3.0)]
    parts = [gradients(model, [collate([one], packing, 2, 0)]) for one in alone]
    total = 0.5 * parts[0][0] + 3 * parts[1][0]
    grads = {name: 0.5 * grad + 3 * parts[1][1][name] for name, grad in parts[0][1].items()}
    assert_close(gradients(model, [collate([whole], packing, 2, 0)]), (total, grads))


def test_the_denominator_and_evaluated_losses_know_no_weights(model):
    plain = [replace(one, weights=None) for one in SAMPLES]
    batch, unweighted = collate(SAMPLES, True, 2, 0), collate(plain, True, 2, 0)
    assert batch.count == unweighted.count == sum(one.count for one in SAMPLES) == 17
    assert unweighted.weights is None
    torch.testing.assert_close(token_losses(model, batch), token_losses(model, unweighted))
    torch.testing.assert_close(
        next_token_loss(model, batch).detach(), (token_losses(model, unweighted) * batch.weights).sum()
    )


def test_weights_go_with_their_labels(model):
    for packing in (True, False):
        batch = collate(SAMPLES, packing, 2, 0)
        assert batch.weights.tolist() == [0.5] * 4 + [3.0] * 2 + [1.0] * 5 + [0.25] * 6
        assert "weights" not in batch.inputs()
        for copy in (pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
            assert torch.equal(copy.weights, batch.weights)
        assert batch.to("meta").weights.device.type == "meta"
    assert collate([SAMPLES[1]], True, 2, 0).weights is None
