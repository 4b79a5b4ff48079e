"""A forward of Qwen-Image-2.1 on tensors without storage: its own asks where pictures stand, which these cannot say."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from qvl_edit.model import SLOT, OneStream


def forward_21(transformer: Any, call: OneStream, noisy: Tensor, sources: Sequence[Tensor], told: Tensor) -> Tensor:
    """(B, N, F), with the shapes of `QwenImage21Transformer2DModel`, of S tokens: text, sources and target. Blocks are
    called as that class calls them; what autograd keeps is held against its own forward (`test_edit_plan.py`).

    noisy    (B, N, F)
    sources  (B, M, F) each
    told     (B, L, D)
    """
    count, length, width = told.shape
    pictures = [*sources, noisy]
    seen = sum(source.shape[1] for source in sources) // SLOT
    states = transformer.txt_in(told.new_zeros(count, length + seen, width))
    latents = transformer.img_in(torch.cat(pictures, 1))
    whole = length + latents.shape[1]
    drawn = states.new_zeros(count, noisy.shape[1] // SLOT, states.shape[2])
    joint = torch.cat([states, drawn], 1)[:, torch.empty(whole, dtype=torch.long)]  # (B, S, inner)
    joint[:, torch.empty(latents.shape[1], dtype=torch.long)] = latents
    levels = joint.new_empty(count + bool(transformer.config.causal_condition))
    embedded = transformer.time_text_embed(levels, latents)
    modulation = transformer.modulation(embedded)
    target = torch.empty(whole, dtype=torch.bool) if transformer.config.causal_condition else None
    turned = torch.empty(whole, sum(transformer.config.axes_dims_rope) // 2, dtype=torch.complex64)
    given = (modulation, turned, None, target, None, None, None, list(_segments(call, length, sources)), None)
    for block in transformer.transformer_blocks:
        if transformer.gradient_checkpointing:
            joint = transformer._gradient_checkpointing_func(block, joint, *given)
        else:
            joint = block(joint, *given)
    found: Tensor = transformer.proj_out(transformer.norm_out(joint, embedded, target))
    return found[:, -noisy.shape[1] :]


def _segments(call: OneStream, length: int, sources: Sequence[Tensor]) -> Iterator[tuple[int, int, bool]]:
    """Beginning, end and whether it is text, of each run before the target."""
    gaps = call.gaps[: len(sources)]
    runs = chain.from_iterable(
        ((gap, True), (source.shape[1], False)) for gap, source in zip(gaps, sources, strict=True)
    )
    at = 0
    for tokens, text in (*runs, (length - sum(gaps), True)):
        yield at, at + tokens, text
        at += tokens
