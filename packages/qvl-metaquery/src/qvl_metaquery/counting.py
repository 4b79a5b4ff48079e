"""What autograd keeps of one forward, and what it computes: the real modules run on tensors that have no storage.

    counted = count(model, work, half=True)               # a model on the meta device, which it changes

Shapes: B pictures, as many prompts of L tokens; N queries.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from qvl_metaquery.conditions import Prefix
from qvl_metaquery.flow import between, flow_loss
from qvl_metaquery.model import MetaQuery

PARTS = ("queries", "connector", "transformer")


@dataclass(frozen=True)
class Work:
    """One forward on one device.

    pictures  B
    tokens    L, of the longest prompt
    latents   (C, H, W) of a picture
    """

    pictures: int
    tokens: int
    latents: tuple[int, int, int]


@dataclass(frozen=True)
class Counted:
    """Bytes that autograd keeps, and operations of the forward, by part: Qwen3-VL at the queries, connector, Sana."""

    saved: dict[str, int]
    flops: dict[str, float]


def count(model: MetaQuery, work: Work, half: bool, device: str = "cuda") -> Counted:
    """Count one forward of a tuned model on a device, which need not be there.

    half  in bf16, with trained matrices as the 16-bit copies that autocast makes of them

    Layers of a part are alike: two of each are run, and the others counted like the second.
    """
    whole = _layers(model)
    one, two = (_count(_shortened(model, whole, number), work, half, device) for number in (1, 2))

    def all_layers(first: float, second: float, part: str) -> float:
        return first + (second - first) * (len(whole[part]) - 1) if len(whole[part]) > 1 else first

    _shortened(model, whole, None)
    return Counted(
        {part: int(all_layers(one.saved[part], two.saved[part], part)) for part in PARTS},
        {part: all_layers(one.flops[part], two.flops[part], part) for part in PARTS},
    )


def _layers(model: MetaQuery) -> dict[str, list[nn.Module]]:
    body, connector, sana = model.mllm.model.language_model, model.connector, model.transformer
    return dict(zip(PARTS, map(list, (body.layers, connector.layers, sana.transformer_blocks)), strict=True))


def _shortened(model: MetaQuery, layers: dict[str, list[nn.Module]], number: int | None) -> MetaQuery:
    """The model with so many layers in each part; None: all."""
    queries, connector, transformer = (nn.ModuleList(layers[part][:number]) for part in PARTS)
    model.mllm.model.language_model.layers = queries
    model.connector.layers, model.transformer.transformer_blocks = connector, transformer
    return model


def _count(model: MetaQuery, work: Work, half: bool, device: str) -> Counted:
    saved, reached = dict.fromkeys(PARTS, 0), ["queries"]
    kept: dict[int, Tensor] = {}  # alive, so that no storage gets the place of another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in kept:
            kept[storage._cdata] = tensor
            saved[reached[-1]] += storage.nbytes()
        return tensor

    def reach(name: str) -> Any:
        return getattr(model, name).register_forward_pre_hook(lambda *_: reached.append(name))

    hooks = [reach(name) for name in PARTS[1:]]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        _without_storage(model, half)
        kept |= {p.untyped_storage()._cdata: p for p in model.parameters()}
        with _autocast(device, half), FlopCounterMode(display=False) as flops:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = _forward(model, work, torch.bfloat16 if half else torch.float32)
            assert loss.requires_grad
    for hook in hooks:
        hook.remove()
    counts = flops.get_flop_counts()
    of = {part: float(sum(counts[type(getattr(model, part)).__name__].values())) for part in PARTS[1:]}
    return Counted(saved, {"queries": flops.get_total_flops() - sum(of.values()), **of})


def count_encoding(coder: Any, size: int) -> float:
    """Operations for the latents of a picture of `size` pixels; the autoencoder, if any, is on the meta device."""
    if coder is None:
        return 0.0
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        coder.encode(torch.empty(1, 3, size, size, device="meta"))
    return float(flops.get_total_flops())


def _forward(model: MetaQuery, work: Work, dtype: torch.dtype) -> Tensor:
    """As `loss.drawing_loss`, behind prompts that were read and pictures that were encoded."""
    text = model.mllm.config.get_text_config()
    shape = (work.pictures, text.num_key_value_heads, work.tokens, text.head_dim)
    keys, values = (tuple(torch.empty(shape, dtype=dtype) for _ in range(text.num_hidden_layers)) for _ in range(2))
    mask, following = (
        torch.empty(work.pictures, work.tokens, dtype=torch.bool),
        torch.empty(work.pictures, dtype=torch.long),
    )
    conditions = model.condition(Prefix(keys, values, mask, following))[torch.empty(work.pictures, dtype=torch.long)]
    latents, noise = (torch.empty(work.pictures, *work.latents) for _ in range(2))
    levels = torch.empty(work.pictures)
    velocity = model.velocity(between(latents, noise, levels), levels, conditions)
    each: Tensor = flow_loss(velocity, latents, noise)
    return each.sum()


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
