"""Tiny models whose trained weights have moved, as after training, and what they answer."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.quantize import quantize
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor
from qvl_core.recipe.blocks import Group, Quantization

TOKENIZER = tiny_processor().tokenizer


@cache
def _base(tied: bool) -> nn.Module:
    return tiny_model(TOKENIZER, tied=tied)


def base(tied: bool = True) -> Any:
    """A fresh model, always with the same weights."""
    fresh = type(_base(tied))(_base(tied).config.__class__.from_dict(_base(tied).config.to_dict())).eval()
    fresh.load_state_dict(_base(tied).state_dict())
    return fresh


def logits(model: nn.Module) -> Tensor:
    """Of one picture between text. (1, L, V)"""
    with torch.no_grad():
        return model(**inputs()).logits


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    picture = torch.full((4,), TOKENIZER.convert_tokens_to_ids("<|image_pad|>"))
    ids = torch.cat([torch.arange(20), picture, torch.arange(5)])[None]
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(16, 1536, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == picture[0]).int(),
    }


def tuned(tune: Mapping[str, Group], tied: bool = True, quantization: Quantization | None = None) -> Any:
    """A model set up by `tune`, moved."""
    model = base(tied)
    apply_tune(model, tune, seed=0, quantization=quantization)
    if quantization is not None:
        quantize(model, quantization)
    return move(model).eval()


def move(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model
