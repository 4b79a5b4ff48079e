"""The chunked head equals full logits in value and gradient, and never holds them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from qvl_core.qwen3vl import head
from qvl_core.qwen3vl.head import head_nll, label_nll

N, D, V = 37, 16, 211


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 5 * V)  # 5 rows at a time, the last chunk of 2


def case(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(V, (N,), generator=generator)
    return hidden, weight, targets, torch.rand(N, generator=generator, dtype=dtype)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_equals_full_logits(weighted, frozen):
    hidden, weight, targets, weights = case()
    weight.requires_grad_(not frozen)
    trained = [hidden] if frozen else [hidden, weight]
    rows = cross_entropy(hidden @ weight.T, targets, reduction="none")
    expected = (rows * weights if weighted else rows).sum()
    total, nll = label_nll(hidden, weight, targets, weights if weighted else None)
    assert not nll.requires_grad
    assert relative(nll, rows) < 1e-6
    assert relative(total, expected) < 1e-6
    scale = 2.0**10  # a loss scaler's factor reaches the gradients exactly
    for grad, full in zip(
        torch.autograd.grad(total * scale, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        assert relative(grad / scale, full) < 1e-6


def test_gradients_are_those_of_finite_differences():
    hidden, weight, targets, weights = case(torch.float64)
    inputs = [hidden[:7].detach(), weight[:23].detach()]
    targets, weights = targets[:7] % 23, weights[:7]
    tracked = [x.clone().requires_grad_() for x in inputs]
    exact = torch.autograd.grad(label_nll(tracked[0], tracked[1], targets, weights)[0], tracked)
    for x, grad in zip(inputs, exact, strict=True):
        for place in range(x.numel()):
            values = []
            for step in (1e-6, -1e-6):
                x.view(-1)[place] += step
                values.append(label_nll(*inputs, targets, weights)[0])
                x.view(-1)[place] -= step
            assert grad.reshape(-1)[place] == pytest.approx(float(values[0] - values[1]) / 2e-6, abs=1e-6)


def test_a_second_backward_is_refused_and_not_wrong():
    hidden, weight, targets, _ = case(torch.float32)
    total, _ = label_nll(hidden, weight, targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        total.backward()


class Watch(TorchDispatchMode):
    """Products made, and the largest tensor made that has not the weight's shape."""

    def __init__(self):
        super().__init__()
        self.products = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += "mm" in func.__name__
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.shape not in [(V, D), (D, V)]:
                self.largest = max(self.largest, x.numel())
        return out


def test_without_grad_no_gradients_are_made():
    hidden, weight, targets, _ = case()
    with torch.no_grad(), Watch() as watch:
        total, nll = label_nll(hidden, weight, targets)
    assert watch.products == 8  # one a chunk: the logits
    assert not total.requires_grad
    torch.testing.assert_close(total, nll.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_good_as_full_logits_under_autocast(dtype):
    hidden, weight, targets, weights = case()
    exact = torch.autograd.grad(
        (cross_entropy(hidden @ weight.T, targets, reduction="none") * weights).sum(), (hidden, weight)
    )
    with torch.autocast("cpu", dtype):
        full = (cross_entropy((hidden @ weight.T).float(), targets, reduction="none") * weights).sum()
        total, _ = label_nll(hidden, weight, targets, weights)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, full, rtol=1e-3, atol=0)
    grads, usual = (torch.autograd.grad(loss * 1024, (hidden, weight)) for loss in (total, full))
    for grad, other, true in zip(grads, usual, exact, strict=True):
        assert grad.dtype == torch.float32
        assert relative(grad / 1024, true) < 1.2 * relative(other / 1024, true) + 1e-4


def test_fp16_keeps_small_probabilities():
    rows, wide = 4, 20_000  # every softmax value is about 5e-5, below fp16's normal numbers
    hidden = torch.randn(rows, D, requires_grad=True)
    weight = (0.01 * torch.randn(wide, D)).requires_grad_()
    targets = torch.randint(wide, (rows,))
    exact = torch.autograd.grad(cross_entropy(hidden @ weight.T, targets, reduction="sum"), weight)[0]
    with torch.autocast("cpu", torch.float16):
        grad = torch.autograd.grad(label_nll(hidden, weight, targets, torch.full((rows,), 100.0))[0], weight)[0] / 100
    rest = torch.ones(wide, dtype=torch.bool).index_fill(0, targets, False)
    assert relative(grad[rest], exact[rest]) < 2e-3


def test_a_head_with_adapters_is_recomputed_by_chunks():
    from peft import LoraConfig, inject_adapter_in_model

    hidden, _, targets, weights = case()
    model = nn.ModuleDict({"lm_head": nn.Linear(D, V, bias=False)})
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False), model)
    lm_head = model["lm_head"]
    trained = [hidden, *(p for p in lm_head.parameters() if p.requires_grad)]
    assert len(trained) == 3
    total, nll = head_nll(lm_head, hidden, targets, weights)
    rows = cross_entropy(lm_head(hidden), targets, reduction="none")
    assert relative(nll, rows) < 1e-6
    expected = torch.autograd.grad((rows * weights).sum(), trained)
    for grad, full in zip(torch.autograd.grad(total, trained), expected, strict=True):
        assert relative(grad, full) < 1e-6


@pytest.mark.parametrize("adapters", [False, True])
def test_never_holds_all_logits(adapters):
    hidden, _, targets, _ = case()
    lm_head = nn.Linear(D, V, bias=False)
    if adapters:
        from peft import LoraConfig, inject_adapter_in_model

        model = nn.ModuleDict({"lm_head": lm_head})
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["lm_head"]), model)
        lm_head = model["lm_head"]
    with Watch() as watch:
        head_nll(lm_head, hidden, targets)[0].backward()
    assert watch.largest == 5 * V


def test_no_labels_is_zero_and_still_part_of_the_graph():
    hidden, weight, targets, _ = case()
    total, nll = label_nll(hidden[:0], weight, targets[:0])
    assert total.item() == 0
    assert nll.shape == (0,)
    total.backward()
    assert weight.grad.abs().max() == 0
