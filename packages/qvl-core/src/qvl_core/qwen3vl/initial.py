"""What LoRA's matrices start from: A random and B zero, or what makes the first steps better.

    W' x + s B A x          s = alpha / rank, or alpha / sqrt(rank) with rsLoRA

zero    A is drawn as a linear layer's weight, B is 0, W' = W: training starts at the base (arXiv:2106.09685).
pissa   B A takes the main singular directions of W, W' = W - s B A the others (arXiv:2404.02948).
loftq   W' is W in nf4, B A the main directions of what that loses (arXiv:2310.08659, one step of its alternation).

With pissa and loftq an adapter is the difference from these first values: s (B A - B0 A0), a plain LoRA of rank 2r that
stands on the untouched W. For pissa that is what was trained, up to the rounding of W' to the base's type. For loftq
W' + s B0 A0 is W up to what rank r cannot restore of nf4's loss; only this rest is not in the adapter.

Everything is computed on the CPU in fp32 by one thread: other devices, precisions and numbers of threads would give
other bits, and a resumed run has to find the very same W'.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.groups import group_of
from qvl_core.qwen3vl.quantize import nearest
from qvl_core.recipe.blocks import Group, Quantization

POWER_STEPS = 4  # of the randomised SVD: PiSSA's paper finds no difference in training beyond


@dataclass(frozen=True)
class Start:
    """First values that are not zero, and the form in which their difference is saved."""

    values: Mapping[str, tuple[Tensor, Tensor]]  # A0 (r, in) and B0 (out, r) by adapted module
    scaling: Mapping[str, float]
    loftq: frozenset[str]
    config: Any  # peft's configuration of the difference: ranks twice as large where there are values

    def restored(self, module: str) -> Tensor | None:
        """What LoftQ's first values give back of a quantised weight (out, in); None where they were not asked to."""
        if module not in self.loftq:
            return None
        a, b = self.values[module]
        return self.scaling[module] * (b @ a)

    def difference(self, module: str, kind: str, trained: Tensor) -> Tensor:
        """The matrix A (2r, in) or B (out, 2r) of the difference, from the trained A (r, in) or B (out, r)."""
        if module not in self.values:
            return trained
        a, b = self.values[module]
        return torch.cat([trained, a]) if kind == "A" else torch.cat([trained, -b], dim=1)


def doubled(block: Group) -> Group:
    """The LoRA block of the difference from first values: twice the rank, scaled as before."""
    if block.mode != "lora" or block.init == "zero":
        return block
    factor = math.sqrt(2) if block.rslora else 2
    return block.model_copy(update={"rank": 2 * block.rank, "alpha": factor * block.alpha})


def set_first_values(
    model: nn.Module,
    tune: Mapping[str, Group],
    seed: int,
    groups: Mapping[str, str],
    quantization: Quantization | None,
    config: Any,
) -> Start | None:
    """Give all injected LoRA layers their first values; W' takes the place of W. None if all start from zero."""
    from peft.tuners.lora import LoraLayer

    generator = torch.Generator().manual_seed(seed)
    values, scaling, loftq = {}, {}, set()
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        drawn = nn.init.kaiming_uniform_(torch.empty(a.shape), a=math.sqrt(5), generator=generator)
        a.data = drawn.to(a.device)
        group = group_of(f"{name}.lora_A.default.weight", groups)
        init = tune[group].init
        if init == "zero":
            continue
        if len(a) > min(layer.in_features, layer.out_features):
            raise BadInput(
                f"tune.{group}.rank: {len(a)} is more than {name} has directions; lower it, or set init: zero."
            )
        weight = layer.get_base_layer().weight
        whole = weight.detach().float().cpu()
        scale = layer.scaling["default"]
        with _one_thread():
            if init == "pissa":
                b0, a0 = _main_directions(whole, len(a), generator, scale)
                weight.data = (whole - scale * (b0 @ a0)).to(weight)
            else:
                assert quantization is not None
                b0, a0 = _main_directions(whole - nearest(whole, quantization), len(a), generator, scale)
                loftq.add(name)
        a.data, b.data = a0.to(a.device, copy=True), b0.to(b.device, copy=True)  # trained in place
        values[name], scaling[name] = (a0, b0), scale
    return Start(values, scaling, frozenset(loftq), config) if values else None


def _main_directions(matrix: Tensor, rank: int, generator: torch.Generator, scale: float) -> tuple[Tensor, Tensor]:
    """B (out, rank) and A (rank, in) so that scale * B @ A is nearest to the matrix (out, in), of equal lengths.

    By a randomised SVD (Halko et al. 2011, arXiv:0909.4061) over twice as many directions as are kept.
    """
    over = min(2 * rank, *matrix.shape)
    directions = torch.randn(matrix.shape[1], over, generator=generator)  # (in, over)
    for _ in range(POWER_STEPS):
        directions = torch.linalg.qr(matrix.T @ (matrix @ directions)).Q
    basis = torch.linalg.qr(matrix @ directions).Q  # (out, over)
    left, lengths, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = (lengths[:rank] / scale).sqrt()
    b, a = (basis @ left[:, :rank]) * root, root[:, None] * right[:rank]
    return b.contiguous(), a.contiguous()  # LAPACK's come by columns, which a fused optimizer would trip over


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
