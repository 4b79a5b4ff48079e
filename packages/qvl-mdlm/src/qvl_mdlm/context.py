"""Prompts that canvases are written behind: read once, with their pictures, and row by row let go.

Prompts are padded on the left, so that every canvas begins in the same column. Where the model's pattern makes a
prompt's keys and values independent of what is written (`prefix`, `block`), they are computed once and are exact.

Shapes: B rows, P tokens of the longest prompt, N of a canvas, D hidden width, K key-value heads, H their width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.generate import inputs_of
from qvl_core.qwen3vl.seen import Seen, given
from qvl_mdlm.layout import shape_of
from qvl_mdlm.pattern import visible


class FixedCache(Cache):
    """Keys and values (B, K, P + N, H) of each layer, in room that is taken once: no forward copies what is there.

    A forward writes its own behind what is kept, or over it from `window` on, and reads all up to there; only `keep`
    makes them stay.

    room    tokens there is room for
    length  tokens that are kept
    """

    def __init__(self, room: int, pairs: Sequence[tuple[Tensor, Tensor]] = (), length: int = 0) -> None:
        self.layers: list[Any] = []  # the library's own, which would grow with every forward
        self.room, self.pairs, self.length = room, list(pairs), length
        self.window: int | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        batch, heads, count, width = keys.shape
        if layer == len(self.pairs):
            self.pairs.append(
                (keys.new_empty(batch, heads, self.room, width), values.new_empty(batch, heads, self.room, width))
            )
        start = self.length if self.window is None else self.window
        end = max(self.length, start + count)
        for kept, new in zip(self.pairs[layer], (keys, values), strict=True):
            kept[:, :, start : start + count] = new
        old_keys, old_values = self.pairs[layer]
        return old_keys[:, :, :end], old_values[:, :, :end]

    def keep(self, count: int) -> None:
        """Let what the last forward wrote of `count` tokens stay."""
        self.length += count

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + (query_length if self.window is None else 0), 0

    def rows(self, kept: Sequence[int]) -> "FixedCache":
        chosen = list(kept)
        fewer = FixedCache(self.room, [(keys[chosen], values[chosen]) for keys, values in self.pairs], self.length)
        fewer.window = self.window
        return fewer

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def is_compileable(self) -> bool:
        return False


@dataclass(frozen=True)
class Context:
    """Prompts as the language model takes them."""

    embeds: Tensor
    """(B, P, D) with picture features in place"""
    mask: Tensor
    """(B, P) bool: false for padding"""
    positions: Tensor
    """(4, B, P)"""
    levels: Tensor
    """(B, P): see `qvl_mdlm.pattern`"""
    pictured: Tensor
    """(B, P) bool: places of picture tokens"""
    deepstack: tuple[Tensor, ...]
    """for each DeepStack layer what is added at the pictured places, row after row"""
    lengths: tuple[int, ...]
    """tokens of each prompt"""

    def __len__(self) -> int:
        return len(self.embeds)

    def rows(self, kept: Sequence[int]) -> "Context":
        """Only these rows (n,), ascending."""
        chosen = torch.tensor(kept, device=self.mask.device)
        row_of = torch.repeat_interleave(torch.arange(len(self), device=chosen.device), self.pictured.sum(1))
        pictures = torch.isin(row_of, chosen)
        return Context(
            self.embeds[chosen],
            self.mask[chosen],
            self.positions[:, chosen],
            self.levels[chosen],
            self.pictured[chosen],
            tuple(features[pictures] for features in self.deepstack),
            tuple(self.lengths[row] for row in kept),
        )

    @property
    def padded(self) -> bool:
        return min(self.lengths) < self.mask.shape[1]

    def padding(self, count: int) -> Tensor | None:
        """(B, P + count): 0 for padding, 1 for prompts and for so many tokens behind them; None without padding."""
        if not self.padded:
            return None
        return torch.cat([self.mask, self.mask.new_ones(len(self), count)], 1).long()

    def without_prompt(self, mask_embed: Tensor) -> "Context":
        """The unconditional branch of guidance: every given token is masked, and no picture is seen."""
        blind = torch.zeros_like(self.pictured)
        return replace(self, embeds=mask_embed.expand_as(self.embeds), pictured=blind, deepstack=())

    def behind(self, count: int) -> Tensor:
        """Positions (4, B, count) of the tokens that follow the prompts."""
        return self.positions[:, :, -1:] + 1 + torch.arange(count, device=self.positions.device)


def read_prompts(model: Any, processor: Any, prompts: Sequence[Encoded], seen: Sequence[Seen] | None = None) -> Context:
    """Encode prompts and their pictures once.

    seen  of each prompt, what the vision tower gave for its media already
    """
    inputs: dict[str, Any] = inputs_of(model, processor.tokenizer, prompts)
    if seen is not None:
        features = given(prompts, seen, inputs["input_ids"].device)
        inputs = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
        inputs["mm_encoder_outputs"] = features
    shape = shape_of(model.config, processor.tokenizer)
    taken = _taken(model, inputs)
    embeds, mask = taken["inputs_embeds"], inputs["attention_mask"].bool()
    levels = torch.zeros_like(inputs["input_ids"])
    for row, prompt in enumerate(prompts):
        levels[row, levels.shape[1] - len(prompt) :] = torch.from_numpy(shape.levels(prompt.ids)).to(levels.device)
    pictured = taken.get("visual_pos_masks")
    deepstack = taken.get("deepstack_visual_embeds") or []
    return Context(
        embeds,
        mask,
        inputs["position_ids"],
        levels,
        torch.zeros_like(mask) if pictured is None else pictured,
        tuple(deepstack),
        tuple(map(len, prompts)),
    )


class _Stop(Exception):
    """Raised to leave the model before its language model runs."""


def _taken(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the model hands to its language model: embeddings with pictures in place, and DeepStack's features."""
    taken: dict[str, Any] = {}

    def take(_: Any, __: Any, options: dict[str, Any]) -> None:
        taken.update(options)
        raise _Stop

    body = model.model
    hook = body.language_model.register_forward_pre_hook(take, with_kwargs=True, prepend=True)
    try:
        body(**inputs, use_cache=False)
    except _Stop:
        pass
    finally:
        hook.remove()
    return taken


def prefill(model: Any, context: Context, room: int) -> FixedCache:
    """Keys and values of the prompts, which see only themselves; with room for so many tokens behind them."""
    documents = torch.where(context.mask, 0, -1)
    alone = not context.padded and not bool(context.levels.any())
    mask = None if alone else visible(context.levels, torch.ones_like(context.mask), documents)
    prompt = context.mask.shape[1]
    cache = FixedCache(prompt + room)
    run(model, context, None, mask, cache)
    cache.keep(prompt)
    return cache


def run(model: Any, context: Context, canvas: Tensor | None, mask: Tensor | None, cache: Any = None) -> Tensor:
    """Hidden states (B, P + N, D) of the prompts and of a canvas (B, N) of ids behind them."""
    body = model.model.language_model
    embeds, positions, pictured = context.embeds, context.positions, context.pictured
    if canvas is not None:
        count = canvas.shape[1]
        embeds = torch.cat([embeds, body.embed_tokens(canvas)], 1)
        positions = torch.cat([positions, context.behind(count)], 2)
        pictured = torch.cat([pictured, torch.zeros_like(canvas, dtype=torch.bool)], 1)
    pictures: dict[str, Any] = {}
    if context.deepstack:
        pictures = {"visual_pos_masks": pictured, "deepstack_visual_embeds": list(context.deepstack)}
    output = body(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        **pictures,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def run_canvas(model: Any, context: Context, ids: Tensor, first: int, cache: FixedCache) -> Tensor:
    """Hidden states (B, n, D) of canvas tokens (B, n), the first of which stands `first` places behind the prompt.

    They see one another and all that is cached.
    """
    body = model.model.language_model
    count = ids.shape[1]
    mask = None
    if context.padded:
        seen = torch.ones(len(ids), cache.get_mask_sizes(count)[0], dtype=torch.bool, device=ids.device)
        seen[:, : context.mask.shape[1]] = context.mask
        mask = seen[:, None, None, :].expand(-1, 1, count, -1)
    hidden: Tensor = body(
        inputs_embeds=body.embed_tokens(ids),
        attention_mask=mask,
        position_ids=context.behind(first + count)[:, :, first:],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return hidden
