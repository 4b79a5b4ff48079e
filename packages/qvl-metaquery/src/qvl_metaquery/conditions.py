"""Conditions in two phases: the prompt is read once without gradients, the queries behind it with gradients.

    prefix = read(mllm, batch)                            # keys and values of every layer, no graph
    states = ask(mllm, queries, prefix)                   # what the frozen model says at the queries

The prompt is causal and does not know the queries, so both phases together equal one forward over prompt and queries,
in outputs and in the queries' gradients, and the backward pass leaves the prompt out. Keys and values are only read:
layers may be computed again in the backward pass, which a growing cache would not survive.

Shapes: U prompts, L tokens of the longest (padded on either side), Q rows that are asked, D width, K key-value heads of
width H.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import Cache


@dataclass(frozen=True)
class Prefix:
    """Prompts as every layer of the language model keeps them."""

    keys: tuple[Tensor, ...]
    """of each layer (U, K, L, H)"""
    values: tuple[Tensor, ...]
    mask: Tensor
    """(U, L) bool: false for padding"""
    following: Tensor
    """(U,) int64: position of the first token behind each prompt"""


@torch.no_grad()
def read(mllm: Any, inputs: dict[str, Any]) -> Prefix:
    """Run the frozen model over prompts; `inputs` are those of `mllm.model`, with positions (4, U, L) and a mask."""
    cache = DynamicCache(config=mllm.config.get_text_config())
    mllm.model(**inputs, past_key_values=cache, use_cache=True)
    mask = inputs["attention_mask"].bool()
    positions = inputs["position_ids"][1:].masked_fill(~mask, -1)
    return Prefix(
        tuple(layer.keys for layer in cache.layers),
        tuple(layer.values for layer in cache.layers),
        mask,
        positions.amax((0, 2)) + 1,
    )


def ask(mllm: Any, queries: Tensor, prefix: Prefix, recompute: bool = False) -> Tensor:
    """(U, Q, D) states, after the last norm, at `queries` (Q, D) behind each prompt.

    recompute  keep only the input of each layer for the backward pass
    """
    body, number, count = mllm.model.language_model, len(prefix.mask), len(queries)
    hidden = queries.to(prefix.keys[0].dtype).expand(number, -1, -1)
    following = prefix.following[:, None] + torch.arange(count, device=hidden.device)  # (U, Q)
    turn = body.rotary_emb(hidden, following.expand(3, -1, -1))
    causal = torch.ones(count, count, dtype=torch.bool, device=hidden.device).tril()
    seen = torch.cat([prefix.mask[:, None].expand(-1, count, -1), causal.expand(number, -1, -1)], 2)  # (U, Q, L + Q)
    mask = _for_layers(seen[:, None], body, hidden.dtype)
    cache = _Read(prefix.keys, prefix.values)
    for layer in body.layers:
        call: Callable[..., Tensor] = layer
        if recompute and torch.is_grad_enabled():
            call = partial(checkpoint, layer, use_reentrant=False)
        hidden = call(hidden, attention_mask=mask, past_key_values=cache, position_embeddings=turn, use_cache=True)
    states: Tensor = body.norm(hidden)
    return states


def _for_layers(seen: Tensor, body: Any, dtype: torch.dtype) -> Tensor:
    """Who sees whom as attention takes it: eager adds it to its scores."""
    if body.config._attn_implementation != "eager":
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


class _Read(Cache):
    """Keys and values that a layer reads and never changes."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.layers: list[Any] = []  # the library's own, which would grow
        self._keys, self._values = keys, values

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self._keys[layer], keys], 2), torch.cat([self._values[layer], values], 2)
