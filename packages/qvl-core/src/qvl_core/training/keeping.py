"""What autograd keeps of one forward, and what it computes: real modules run on tensors that have no storage.

counted(model, forward, ("transformer",), half=True)  # a model on the meta device, which it changes
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from qvl_core.training.operations import counting


@dataclass(frozen=True)
class Counted:
    """Bytes that autograd keeps, and operations of the forward, by part."""

    saved: dict[str, int]
    flops: dict[str, float]


def counted(
    model: nn.Module, forward: Callable[[torch.dtype], Tensor], parts: Sequence[str], half: bool, device: str = "cuda"
) -> Counted:
    """Count one forward of a tuned model on a device, which need not be there.

    forward  the loss, of numbers of the type it is given
    parts    modules of the model in the order in which they are reached; the first name is all that comes before, and
             need be none of them
    half     in bf16, with trained matrices as the 16-bit copies that autocast makes of them
    """
    saved, reached = dict.fromkeys(parts, 0), [parts[0]]
    kept: dict[int, Tensor] = {}  # alive, so that no storage gets the place of another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in kept:
            kept[storage._cdata] = tensor
            saved[reached[-1]] += storage.nbytes()
        return tensor

    def reach(name: str) -> Any:
        return getattr(model, name).register_forward_pre_hook(lambda *_: reached.append(name))

    hooks = [reach(name) for name in parts[1:]]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        _without_storage(model, half)
        kept |= {p.untyped_storage()._cdata: p for p in model.parameters()}
        with _autocast(device, half), FlopCounterMode(display=False) as flops:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = forward(torch.bfloat16 if half else torch.float32)
            assert loss.requires_grad
    for hook in hooks:
        hook.remove()
    counts = flops.get_flop_counts()
    of = {part: float(sum(counts[type(getattr(model, part)).__name__].values())) for part in parts[1:]}
    return Counted(saved, {parts[0]: flops.get_total_flops() - sum(of.values()), **of})


def operations(model: nn.Module, forward: Callable[[torch.dtype], Tensor]) -> float:
    """Operations of a forward and a backward of a tuned model: with its adapters, what it computes again (the scores of
    attention are always), and no gradient that nothing needs.

    forward  the loss, of numbers of the type it is given
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), counting() as counter:
        _without_storage(model, half=False)
        forward(torch.float32).backward()
    return float(counter.get_total_flops())


@contextmanager
def fused_attention() -> Iterator[None]:
    """torch's attention as a GPU computes it: without the scores of tokens by tokens, which tensors without storage
    would be given. With a mask it is the memory-efficient kernel, else FlashAttention. Heads of keys are not repeated.
    """
    functional: Any = torch.nn.functional
    before = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        scale = options.get("scale")
        if attn_mask is None:
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            found: Tensor = flash(query, key, value, 0.0, bool(options.get("is_causal")), scale=scale)[0]
            return found
        mask = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        masked: Tensor = efficient(query, key, value, mask, True, scale=scale)[0]
        return masked

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def of_layers(one: float, two: float, layers: int) -> float:
    """What many equal layers take, by what one and two of them do."""
    return one + (two - one) * (layers - 1) if layers > 1 else one


def _without_storage(model: nn.Module, half: bool) -> None:
    """Give parameters and buffers a device in place of meta, and the type they compute in."""
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                low = half and (old.ndim > 1 or not old.requires_grad)
                new = torch.empty(old.shape, dtype=torch.bfloat16 if low else torch.float32)
                module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def _autocast(device: str, half: bool) -> Iterator[None]:
    """torch.autocast refuses a device that is not there."""
    before: Any = torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, half)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, False)
        torch.set_autocast_dtype(device, before)
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
