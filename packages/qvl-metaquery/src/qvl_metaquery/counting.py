"""What autograd keeps of one forward, and what it computes: the real modules run on tensors that have no storage.

    counted = count(model, work, half=True)               # a model on the meta device, which it changes

Shapes: B pictures, as many prompts of L tokens; N queries.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qvl_core.training.keeping import Counted, counted, of_layers
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


def count(model: MetaQuery, work: Work, half: bool, device: str = "cuda") -> Counted:
    """Count one forward of a tuned model on a device, which need not be there.

    half  in bf16, with trained matrices as the 16-bit copies that autocast makes of them

    Layers of a part are alike: two of each are run, and the others counted like the second.
    """
    whole = _layers(model)
    forward = partial(_forward, model, work)
    one, two = (counted(_shortened(model, whole, number), forward, PARTS, half, device) for number in (1, 2))
    _shortened(model, whole, None)
    return Counted(
        {part: int(of_layers(one.saved[part], two.saved[part], len(whole[part]))) for part in PARTS},
        {part: of_layers(one.flops[part], two.flops[part], len(whole[part])) for part in PARTS},
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
