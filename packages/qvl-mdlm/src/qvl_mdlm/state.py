"""What the sampler keeps between the steps of a block: prompts, and keys and values where the cache allows it.

Shapes: B rows, P tokens of the longest prompt, N of the canvas, n of a block, D hidden width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qvl_mdlm.context import Context, FixedCache, prefill, run, run_canvas
from qvl_mdlm.pattern import visible
from qvl_mdlm.sampling import Caching


class State:
    """The branches of a batch in work: its prompts, and with guidance the same unseen.

    cache     see `qvl_mdlm.sampling`
    prefills  forward passes over the prompts alone that it took to begin
    """

    def __init__(self, model: Any, context: Context, length: int, cache: Caching, guided: bool) -> None:
        self.model = model
        self.contexts = [context]
        if guided:
            mask_id = torch.tensor(model.config.mask_token_id, device=context.embeds.device)
            mask = model.get_input_embeddings()(mask_id)  # not its weight: the row may be trained beside LoRA
            self.contexts.append(context.without_prompt(mask))
        self.pattern: str = model.config.pattern
        self.dual = cache == "dual"
        self.cached = cache == "auto" and self.pattern != "full"
        self.caches = [prefill(model, each, length) for each in self.contexts] if self.cached else []
        self.prefills = len(self.caches)
        self.start = self.stop = 0

    def begin(self, canvas: Tensor, start: int, stop: int) -> int:
        """Take up the block from `start` to `stop` of canvases (B, N). Gives the forward passes that took."""
        self.start, self.stop = start, stop
        if not self.dual:
            return 0
        (context,) = self.contexts
        prompt, length = context.mask.shape[1], canvas.shape[1]
        cache = FixedCache(prompt + length)
        run(self.model, context, canvas, context.padding(length), cache)
        cache.keep(prompt + length)
        cache.window = prompt + start
        self.caches = [cache]
        return 1

    def hidden(self, canvas: Tensor) -> list[Tensor]:
        """Hidden states (B, n, D) of the block in work, of each branch."""
        if self.caches:
            first, ids = (self.start, canvas[:, self.start : self.stop])
            if self.pattern == "prefix":  # the whole canvas sees itself
                ids, first = canvas, 0
            found = [
                run_canvas(self.model, context, ids, first, cache)
                for context, cache in zip(self.contexts, self.caches, strict=True)
            ]
            return [states[:, self.start : self.stop] for states in found] if self.pattern == "prefix" else found
        shown = canvas[:, : self.stop] if self.pattern == "block" else canvas
        found = [run(self.model, context, shown, self._who_sees_whom(context, shown)) for context in self.contexts]
        prompt = self.contexts[0].mask.shape[1]
        return [states[:, prompt + self.start : prompt + self.stop] for states in found]

    def finish(self, canvas: Tensor) -> int:
        """Put the finished block where later ones see it. Gives the forward passes that took."""
        if not self.cached or self.pattern != "block" or self.stop == canvas.shape[1]:
            return 0
        for context, cache in zip(self.contexts, self.caches, strict=True):
            run_canvas(self.model, context, canvas[:, self.start : self.stop], self.start, cache)
            cache.keep(self.stop - self.start)
        return len(self.contexts)

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows go."""
        self.contexts = [context.rows(rows) for context in self.contexts]
        self.caches = [cache.rows(rows) for cache in self.caches]

    def _who_sees_whom(self, context: Context, shown: Tensor) -> Tensor | None:
        """The mask of a forward over prompts and canvas."""
        count = shown.shape[1]
        if self.pattern == "full":
            return context.padding(count)
        size = self.model.config.block_size or count
        blocks = torch.arange(count, device=shown.device) // size
        levels = torch.cat([context.levels, context.levels[:, -1:] + 1 + blocks], 1)
        working = torch.arange(count, device=shown.device) >= (self.start if self.pattern == "block" else 0)
        clean = torch.cat([torch.ones_like(context.mask), ~working.expand(len(shown), -1)], 1)
        documents = torch.cat([torch.where(context.mask, 0, -1), torch.zeros_like(shown)], 1)
        return visible(levels, clean, documents)
