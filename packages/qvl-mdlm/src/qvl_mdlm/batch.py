"""From chats to noised batches: what is masked is decided where a sample is read, from the seed and its place alone.

So a resumed run masks what the uninterrupted one would have, and the same for any number of processes, workers and
micro-batches. A `Noised` sample is an `Encoded` one whose labels stand at the masks, each with its weight; the common
batch, loss and loop do the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvl_core.qwen3vl.batch import Batch, assemble, four_rows, padded
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.training.samples import Bad, LeftOut, Place
from qvl_mdlm.layout import Layout, Shape
from qvl_mdlm.noise import Noise
from qvl_mdlm.pattern import visible

Array = NDArray[Any]
Norm = Literal["token", "sequence", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noised(Encoded):
    """A chat in its layout with masks put in; labels are what the masks hide, weights those of the loss.

    positions (4, T), levels (T,), clean (T,)   see `qvl_mdlm.layout`
    share     what the sample adds to the loss's denominator: tokens that could be masked, or 1
    """

    positions: Array
    levels: Array
    clean: Array
    share: int

    @property
    def count(self) -> int:
        return self.share


@dataclass(frozen=True)
class Corruption:
    """What makes a noised sample of a chat.

    norm  what the loss is a mean over: `token` (all that could be masked), `sequence` (samples, each the mean of its
          tokens), `batch` (samples, each the sum of its tokens)
    """

    shape: Shape
    noise: Noise
    mask_token_id: int
    norm: Norm = "token"

    def __call__(self, sample: Encoded, seed: int, place: Place, other: bool = False) -> Noised:
        laid = self.shape.lay_out(sample)
        masked, weights = self.noise.draw(laid.segments, seed, place, other)
        return noised(laid, masked, weights * laid.weights, self.mask_token_id, self.norm)


def noised(laid: Layout, masked: Array, weights: Array, mask_token_id: int, norm: Norm = "token") -> Noised:
    """A layout with masks where `masked` (T,) says so, each of which weighs `weights` (T,) before the norm."""
    eligible = int((laid.segments >= 0).sum())
    return Noised(
        id=laid.shown.id,
        ids=np.where(masked, mask_token_id, laid.ids),
        labels=np.where(masked, laid.ids, IGNORE),
        types=laid.types,
        weights=(weights / max(1, eligible) if norm == "sequence" else weights).astype(np.float32),
        images=laid.shown.images,
        image_grid=laid.shown.image_grid,
        videos=laid.shown.videos,
        video_grid=laid.shown.video_grid,
        positions=laid.positions,
        levels=laid.levels,
        clean=laid.clean,
        share=eligible if norm == "token" else 1,
    )


@dataclass(frozen=True)
class Noising:
    """What is learned from a chat at its place in a step: it with masks, and with the complement of a pair beside it.

    max_length  tokens of a sample, its canvas included; of a pair, if both share a packed row (`in_rows`)
    drop        samples that are too long are left out without a word (`too_long: drop`)
    """

    corruption: Corruption
    seed: int
    max_length: int
    in_rows: bool = False
    drop: bool = False

    def __call__(self, chat: Encoded, place: Place) -> list[Noised]:
        """Raises LeftOut for a chat that its canvas makes too long."""
        halves = (False, True) if self.corruption.noise.complementary else (False,)
        made = [self.corruption(chat, self.seed, place, other) for other in halves]
        tokens = len(made[0]) * self._each
        if tokens > self.max_length:
            what = "its canvas" if self._each == 1 else "its canvas and its complement"
            shape = self.corruption.shape
            shorter = ", or lower diffusion.pad_to" if shape.pad_to and shape.pattern != "block" else ""
            message = (
                f"sample {chat.id}: {tokens} tokens with {what} is over the limit of {self.max_length}; "
                f"raise batch.max_length{shorter}"
            )
            raise LeftOut(Bad(chat.id, "too_long", message, self.drop))
        return made

    def taken(self, tokens: int, runs: Sequence[tuple[int, int]]) -> int:
        """Room in a row for a chat of `tokens` tokens with these answers (see `ChatSamples.taken`)."""
        return self.corruption.shape.length(tokens, runs) * self._each

    @property
    def _each(self) -> int:
        return 2 if self.in_rows and self.corruption.noise.complementary else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternBatch(Batch):
    """A batch in which a mask says who sees whom (`prefix` and `block`)."""

    levels: Tensor
    """(B, T) int64"""
    clean: Tensor
    """(B, T) bool"""
    places: Tensor
    """(B, T) int64: sample of each token; -1: padding"""

    def inputs(self) -> dict[str, Any]:
        inputs = Batch.inputs(self)
        for name in ("levels", "clean", "places", *(name for name in inputs if name.endswith(("_q", "_k")))):
            inputs.pop(name, None)
        return {**inputs, "attention_mask": visible(self.levels, self.clean, self.places)}


def collation(processor: Any, packing: bool, patterned: bool) -> "partial[Batch]":
    """Noised samples to one batch, packed or padded. A function that can be pickled to workers."""
    tokenizer, merge = processor.tokenizer, processor.image_processor.merge_size
    return partial(collate, packing=packing, patterned=patterned, merge=merge, pad_id=tokenizer.pad_token_id)


def collate(samples: Sequence[Encoded], packing: bool, patterned: bool, merge: int, pad_id: int) -> Batch:
    """Lay noised samples end to end (`packing`) or one below the other; with `patterned`, with a mask of who sees whom.

    A masked token predicts itself. What is not noised (the witness of several processes) is clean and has no labels.
    """
    whole = [sample if isinstance(sample, Noised) else _clean(sample, merge) for sample in samples]
    rows = [np.flatnonzero(sample.labels != IGNORE) for sample in whole]
    batch = assemble(whole, rows, 0, [sample.positions for sample in whole], packing, pad_id)
    if not patterned:
        return batch
    places = [np.full(len(sample), place) for place, sample in enumerate(whole)]

    def join(parts: list[Array], fill: int = 0) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)[None]) if packing else padded(parts, fill)

    return PatternBatch(
        **{field.name: getattr(batch, field.name) for field in fields(Batch)},
        levels=join([sample.levels for sample in whole]),
        clean=join([sample.clean for sample in whole]),
        places=join(places, -1),
    )


def _clean(sample: Encoded, merge: int) -> Noised:
    length = len(sample)
    return Noised(
        **{
            field.name: getattr(sample, field.name)
            for field in fields(Encoded)
            if field.name not in ("labels", "weights")
        },
        labels=np.full(length, IGNORE),
        weights=np.zeros(length, np.float32),
        positions=four_rows(sample, merge),
        levels=np.zeros(length, np.int64),
        clean=np.ones(length, bool),
        share=0,
    )
