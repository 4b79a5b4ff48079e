"""Mergers: from the encoder's tokens to the language model's width, with fewer tokens if asked.

Called with (..., N, D); of a merger with `merge` r the r*r patches of a square lie next to each other in N, as Qwen's
processors write them. All return (..., M, T).

Shapes: N tokens in, M tokens out (N / r**2, or the number of queries), D encoder width, T text width.
"""

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.errors import BadInput
from qvl_vision.encoders import really_made
from qvl_vision.registry import MergerInfo, merger_info, register_merger


@register_merger("linear")
class LinearMerger(nn.Module):
    """One linear layer, token by token: any N, no divisibility (SimpleVisionMerger)."""

    def __init__(self, vision_width: int, text_width: int, merge: int) -> None:
        super().__init__()
        self.proj = nn.Linear(vision_width * merge**2, text_width)
        self.merge = merge

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(joined(tokens, self.merge))


@register_merger("mlp")
class MLPMerger(nn.Module):
    """Two linear layers with GELU between them, token by token (LLaVA-1.5, arXiv:2310.03744)."""

    def __init__(self, vision_width: int, text_width: int, merge: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width * merge**2, text_width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(text_width, text_width)
        self.merge = merge

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(joined(tokens, self.merge))))


@register_merger("pixel_shuffle", merge=2)
class PixelShuffleMerger(nn.Module):
    """The patches of a square side by side in one token, LayerNorm, then an MLP (InternVL 1.5, arXiv:2404.16821)."""

    def __init__(self, vision_width: int, text_width: int, merge: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision_width * merge**2)
        self.fc1 = nn.Linear(vision_width * merge**2, text_width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(text_width, text_width)
        self.merge = merge

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(joined(tokens, self.merge)))))


@register_merger("pool", merge=2)
class PoolMerger(nn.Module):
    """The mean of each square of patches, then an MLP."""

    def __init__(self, vision_width: int, text_width: int, merge: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, text_width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(text_width, text_width)
        self.merge = merge

    def forward(self, tokens: Tensor) -> Tensor:
        pooled = tokens.unflatten(-2, (-1, self.merge**2)).mean(-2)  # (..., M, D)
        return self.fc2(self.act(self.fc1(pooled)))


@register_merger("native", merge=2)
class NativeMerger(nn.Module):
    """Qwen3-VL's own (Qwen3VLVisionPatchMerger): LayerNorm, the patches of a square side by side, MLP.

    `after`: the norm comes after the patches are joined, as in its DeepStack mergers.
    """

    def __init__(self, vision_width: int, text_width: int, merge: int, after: bool = False) -> None:
        super().__init__()
        joined_width = vision_width * merge**2
        self.norm = nn.LayerNorm(joined_width if after else vision_width, eps=1e-6)
        self.linear_fc1 = nn.Linear(joined_width, joined_width)
        self.act_fn = nn.GELU()
        self.linear_fc2 = nn.Linear(joined_width, text_width)
        self.merge, self.after = merge, after

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(joined(tokens, self.merge)) if self.after else joined(self.norm(tokens), self.merge)
        return self.linear_fc2(self.act_fn(self.linear_fc1(normed)))


@register_merger("resampler", whole=True, queries="queries")
class ResamplerMerger(nn.Module):
    """Learned queries that attend to the tokens of a picture: a fixed number of tokens (Flamingo, arXiv:2204.14198)."""

    def __init__(
        self, vision_width: int, text_width: int, merge: int, queries: int = 64, depth: int = 2, heads: int = 8
    ) -> None:
        super().__init__()
        if text_width % heads:
            raise BadInput(f"merger_options: heads ({heads}) does not divide the text width {text_width}.")
        self.input = nn.Linear(vision_width, text_width)
        self.queries = nn.Parameter(torch.randn(queries, text_width) * 0.02)
        self.blocks = nn.ModuleList(_ResamplerBlock(text_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(text_width)
        self.proj = nn.Linear(text_width, text_width)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = self.input(tokens)  # (n, N, T)
        states = self.queries.to(seen.dtype).expand(len(tokens), -1, -1)  # (n, M, T)
        for block in self.blocks:
            states = block(states, seen)
        return self.proj(self.norm(states))


class _ResamplerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_states, self.norm_seen, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        queries, keys = self.norm_states(states), self.norm_seen(seen)
        states = states + self.attention(queries, keys, keys, need_weights=False)[0]
        return states + self.mlp(self.norm_mlp(states))


def joined(tokens: Tensor, merge: int) -> Tensor:
    """The `merge**2` tokens of each square as one: (..., N, D) -> (..., N / merge**2, D * merge**2)."""
    return tokens if merge == 1 else tokens.unflatten(-2, (-1, merge**2)).flatten(-2)


def build_merger(
    name: str, vision_width: int, text_width: int, merge: int, options: dict[str, Any], input_norm: bool = False
) -> nn.Module:
    """A merger by name. Raises BadInput for an unknown name or option."""
    info = merger_info(name)
    try:
        with really_made():
            made = info.build(vision_width, text_width, merge, **options)
            if input_norm:
                made = nn.Sequential(OrderedDict(norm=nn.LayerNorm(vision_width), inner=made))
    except TypeError as error:
        raise BadInput(f'merger "{name}": does not take merger_options {options} ({error}).') from error
    return made.to(torch.get_default_dtype())


def fixed_tokens(info: MergerInfo, options: dict[str, Any]) -> int | None:
    """How many tokens a merger with queries gives for a picture; None for those that give N / merge**2."""
    if info.queries is None:
        return None
    count = options.get(info.queries, inspect.signature(info.build).parameters[info.queries].default)
    if not isinstance(count, int) or count < 1:
        raise BadInput(f"merger_options: {info.queries} is {count!r}; it has to be a number of at least 1.")
    return count
