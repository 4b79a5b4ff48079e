"""What autograd keeps of one forward of the transformer, and what a step computes, without weights.

    saved = count_saved(transformer, work, half=True)     # on the meta device, which it changes
    flops = count_training(transformer, work)

Shapes: B samples of one bucket; L tokens of a text of width D; N tokens of a target, of F features.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.training.keeping import counted, fused_attention, of_layers, operations
from qvl_core.training.operations import counting
from qvl_edit.counting_21 import forward_21
from qvl_edit.cut import Bucket
from qvl_edit.flow import between, velocity_losses
from qvl_edit.model import Call, Given, OneStream

PART = "transformer"


@dataclass(frozen=True)
class Work:
    """One forward on one device.

    samples   B
    text      L
    channels  of latents
    """

    samples: int
    text: int
    bucket: Bucket
    channels: int
    call: Call

    @property
    def tokens(self) -> int:
        """Of one sample: its text and all its pictures."""
        return self.text + sum(self.call.grid.tokens(size) for size in self.bucket.sizes)


def count_saved(transformer: Any, work: Work, half: bool, device: str = "cuda") -> int:
    """Bytes that autograd keeps of one forward of a tuned transformer on a device, which need not be there.

    half  in bf16, with trained matrices as the 16-bit copies that autocast makes of them
    """

    def saved() -> float:
        with fused_attention() if device == "cuda" else nullcontext():
            return counted(transformer, partial(_forward, transformer, work), (PART,), half, device).saved[PART]

    return int(_of_blocks(transformer, saved))


def count_training(transformer: Any, work: Work) -> float:
    """Operations of one forward and backward of a tuned transformer, of pictures that were encoded."""
    return _of_blocks(transformer, lambda: operations(transformer, partial(_forward, transformer, work)))


def _of_blocks(transformer: Any, found: Callable[[], float]) -> float:
    """What is found of a transformer. Its blocks are alike: the last one, and one more, are run, and the others taken
    for such as that one."""
    blocks = transformer.transformer_blocks
    transformer.pos_embed = _frequencies(transformer)
    ends = []
    for number in (1, 2):
        transformer.transformer_blocks = nn.ModuleList([*blocks[: number - 1], blocks[-1]])
        ends.append(found())
    transformer.transformer_blocks = blocks
    one, two = ends
    return of_layers(one, two, len(blocks))


def count_encoding(vae: Any, work: Work) -> float:
    """Operations for the latents of a sample's pictures; the autoencoder, if any, is on the meta device."""
    if vae is None:
        return 0.0
    channels = getattr(vae.config, "in_channels", 3)
    with torch.no_grad(), counting() as counter:
        for height, width in work.bucket.sizes:
            vae.encode(torch.empty(1, channels, 1, height, width, device="meta"))
    return float(counter.get_total_flops())


def _forward(transformer: Any, work: Work, dtype: torch.dtype) -> Tensor:
    """As `loss.edit_losses`, of pictures that were encoded."""
    grid = work.call.grid
    latents = [grid.pack(torch.empty(work.samples, work.channels, *grid.places(size))) for size in work.bucket.sizes]
    target, *sources = latents
    noise, levels = torch.empty(target.shape), torch.empty(work.samples)
    told = torch.empty(work.samples, work.text, transformer.config[work.call.width], dtype=dtype)
    mask = torch.empty(work.samples, work.text, dtype=torch.bool) if work.samples > 1 and work.call.padded else None
    noisy = between(target, noise, levels)
    if isinstance(work.call, OneStream):
        predicted = forward_21(transformer, work.call, noisy.to(dtype), sources, told)
    else:
        predicted = work.call(transformer, noisy, levels, Given(sources, told, mask, work.bucket))
    losses: Tensor = velocity_losses(predicted, target, noise)
    return losses.sum()


def _frequencies(transformer: Any) -> nn.Module:
    """The rotary embedding with its tables, which are no buffers and were made on the meta device."""
    own = transformer.pos_embed
    return type(own)(own.theta, own.axes_dim, *([own.scale_rope] if hasattr(own, "scale_rope") else []))
