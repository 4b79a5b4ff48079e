"""Packed training on a GPU: the varlen kernel agrees with fp32, nothing synchronises per layer, the head stays small.

nox -s gpu
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.head import label_nll
from qvl_core.qwen3vl.loss import label_states, next_token_loss
from qvl_core.qwen3vl.tiny import tiny_config, tiny_model, tiny_processor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MERGE = 2
TOKENIZER = tiny_processor().tokenizer


def model(layers: int = 3):
    from transformers import Qwen3VLForConditionalGeneration

    if layers == 3:
        built = tiny_model(TOKENIZER, seed=1)
    else:
        config = tiny_config(TOKENIZER)
        config.text_config.num_hidden_layers = config.vision_config.depth = layers
        config.text_config.layer_types = None
        built = Qwen3VLForConditionalGeneration(config).eval()
    attention.use(built)
    return built.cuda()


def sample(seed: int, words: int, pictures: Sequence[tuple[int, int]]) -> Encoded:
    rng = np.random.default_rng(seed)
    start, image, end = TOKENIZER.convert_tokens_to_ids(["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"])
    ids = rng.integers(5, 250, 3).tolist()
    for h, w in pictures:
        ids += [start, *[image] * (h * w), end]
    ids = np.array([*ids, *rng.integers(5, 250, words)])
    grid = np.array([(1, MERGE * h, MERGE * w) for h, w in pictures], np.int64) if pictures else None
    patches = None if grid is None else rng.normal(size=(grid.prod(1).sum(), 1536)).astype(np.float32)
    labels = np.where(np.arange(len(ids)) < len(ids) - words // 2, IGNORE, ids)
    return Encoded(str(seed), ids, labels, (ids == image) * 1, patches, grid)


SAMPLES = [sample(0, 40, [(2, 2), (2, 3)]), sample(1, 9, []), sample(2, 200, [(4, 4)]), sample(3, 9, [])]


def logits(model, samples: list[Encoded]) -> Tensor:
    return model.lm_head(label_states(model, collate(samples, True, MERGE, 0).to("cuda")))


def gradients(model, samples: list[Encoded]) -> Tensor:
    model.zero_grad()
    next_token_loss(model, collate(samples, True, MERGE, 0).to("cuda")).backward()
    grads = (torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters())  # None: no picture
    return torch.cat([grad.flatten().float() for grad in grads])


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_fp32_packed_equals_unpacked():
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    exact = model()
    alone = torch.cat([logits(exact, [one]) for one in SAMPLES])
    torch.testing.assert_close(logits(exact, SAMPLES), alone, atol=1e-5, rtol=1e-5)
    summed = sum(gradients(exact, [one]) for one in SAMPLES)
    assert relative(gradients(exact, SAMPLES), summed) < 1e-5


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bf16 weights"])
def test_the_kernel_is_as_good_as_sdpa_in_bf16(monkeypatch, autocast):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the varlen kernel needs compute capability 8.0")
    exact = gradients(model(), SAMPLES)
    trained = model() if autocast else model().bfloat16()
    kernel, calls = attention._varlen, []
    monkeypatch.setattr(attention, "_varlen", lambda *args: calls.append(1) or kernel(*args))
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        by_kernel = gradients(trained, SAMPLES)
        assert len(calls) == 6  # every layer of text and tower
        monkeypatch.setattr(attention, "_kernel_type", lambda query, value: None)
        by_sdpa = gradients(trained, SAMPLES)
    assert relative(by_kernel, exact) < 1.5 * relative(by_sdpa, exact)
    assert relative(by_sdpa, exact) < 0.1


def test_synchronisations_do_not_grow_with_the_depth():
    def synchronisations(layers: int) -> int:
        deep, batch = model(layers), collate(SAMPLES, True, MERGE, 0).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            next_token_loss(deep, batch).backward()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    next_token_loss(deep, batch).backward()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    assert synchronisations(8) == synchronisations(3)


def test_the_head_takes_a_fifth_of_the_memory_of_full_logits():
    """8192 rows, 20 % labels, the 8B's head in bf16: full logits would take 13.9 GiB."""
    width, vocabulary, rows = 4096, 151_936, 8192
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip("full logits of 8192 rows need 24 GiB of free GPU memory")
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = 0.02 * torch.randn(vocabulary, width, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(vocabulary, (rows,), device="cuda")
    labelled = torch.arange(0, rows, 5, device="cuda")

    def extra(loss) -> tuple[int, Tensor, Tensor]:
        hidden.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        total = loss()
        total.backward()
        return torch.cuda.max_memory_allocated() - before, total.detach(), hidden.grad.float()

    masked = torch.full_like(targets, IGNORE).index_copy(0, labelled, targets[labelled])
    full, expected, exact = extra(lambda: cross_entropy((hidden @ weight.T).float(), masked, reduction="sum"))
    ours, total, grad = extra(lambda: label_nll(hidden[labelled], weight, targets[labelled])[0])
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=0)
    assert relative(grad, exact) < 0.02
    assert ours < full / 5
