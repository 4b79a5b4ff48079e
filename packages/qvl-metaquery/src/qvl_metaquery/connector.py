"""The connector: what Qwen3-VL's states say at the queries, in the width and scale that Sana reads captions in.

Layers that see all queries at once, then two linear layers and a norm (Pan et al. 2025, arXiv:2504.06256; the exact
layout is described in docs/metaquery/model.md). Queries are an ordered row, so positions are 0..N-1 (RoPE); queries and
keys are turned first and brought to unit length afterwards, which is not the usual order.

Shapes: B prompts, N queries, D width, H heads of 64, C width of the conditions.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

HEAD = 64
THETA = 10_000.0
INITIAL = 0.014  # standard deviation of the layers' first weights


class Connector(nn.Module):
    """(B, N, `taken`) states to (B, N, `given`) conditions.

    taken   width of the language model
    given   width of the conditions (Sana's `caption_channels`)
    layers  encoder layers; 0 leaves the projection alone
    width   of the layers, a multiple of 64; another than `taken` has a linear layer before them
    scale   first value of the last norm's weight: the root mean square of conditions
    """

    def __init__(
        self, taken: int, given: int, layers: int = 24, width: int | None = None, scale: float = math.sqrt(5.5)
    ) -> None:
        super().__init__()
        width = width or taken
        self.narrow = nn.Linear(taken, width) if width != taken else nn.Identity()
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.project_in = nn.Linear(width, given)
        self.project_out = nn.Linear(given, given)
        self.norm = nn.RMSNorm(given, eps=1e-5)
        nn.init.constant_(self.norm.weight, scale)
        self.recompute = False

    def forward(self, states: Tensor) -> Tensor:
        hidden = self.narrow(states)  # (B, N, D)
        turn = rotary(hidden.shape[1], hidden.device)
        for layer in self.layers:
            call: Callable[..., Tensor] = layer
            if self.recompute and torch.is_grad_enabled():
                call = partial(checkpoint, layer, use_reentrant=False)
            hidden = call(hidden, *turn)
        return self.norm(self.project_out(gelu(self.project_in(hidden), approximate="tanh")))  # (B, N, C)


class Layer(nn.Module):
    """One encoder layer: attention and a gated MLP, each behind a norm and around a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.gate, self.up = (nn.Linear(width, 4 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(4 * width, width, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), cos, sin)
        normed = self.mlp_norm(hidden)
        return hidden + self.down(silu(self.gate(normed)) * self.up(normed))


class Attention(nn.Module):
    """Every query sees every other. Queries and keys are of length 8 (the root of 64) times a weight each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.query_scale, self.key_scale = (nn.Parameter(torch.ones(width)) for _ in range(2))  # (H * 64,)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (
            linear(hidden).unflatten(-1, (-1, HEAD)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )  # (B, H, N, 64)
        query, key = (
            unit(turned(states, cos, sin), scale)
            for states, scale in ((query, self.query_scale), (key, self.key_scale))
        )
        seen = scaled_dot_product_attention(query, key, value)
        return self.out(seen.transpose(1, 2).flatten(2))


def rotary(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, 64) of positions 0..N-1, the first half of a head paired with the second."""
    frequency = THETA ** (-torch.arange(0, HEAD, 2, device=device, dtype=torch.float64) / HEAD)
    angle = torch.arange(count, device=device, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, N, 64) turned by position."""
    first, second = states.chunk(2, -1)
    return states * cos.to(states.dtype) + torch.cat([-second, first], -1) * sin.to(states.dtype)


def unit(states: Tensor, scale: Tensor) -> Tensor:
    """(B, H, N, 64) of length 8 times `scale` (H * 64,)."""
    weight = scale.view(-1, 1, HEAD).to(states.dtype)
    return normalize(states, dim=-1) * weight * math.sqrt(HEAD)
