"""Slots of a step as the tensors of one forward: samples of one bucket, their texts padded on the right.

Shapes: B samples, H x W of a picture and C channels of a latent (3 of a picture), N tokens of a target with F features,
L tokens of a text of width D, perhaps in pieces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvl_edit.cut import Bucket
from qvl_edit.embed import joined

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One slot.

    pictures  the target, then its sources: (3, H, W) in [-1, 1], or (C, H, W) latents as `Vae.raw` gives them
    told      embedding of the text and the sources, in pieces (L_i, D), one behind the other
    noise     (N, F)
    level     of the noise, in (0, 1]
    share     what the loss counts it: 1, or 0 for a witness
    """

    id: str
    bucket: Bucket
    pictures: tuple[Array, ...]
    told: tuple[Tensor, ...]
    noise: Array
    level: float
    share: int = 1


@dataclass(frozen=True, slots=True)
class EditBatch:
    """Tensors of one forward."""

    bucket: Bucket
    """Sizes in pixels of the pictures of each sample."""
    pictures: tuple[Tensor, ...]
    """(B, 3, H, W) or, `coded`, (B, C, H, W), of the targets, then of each source"""
    told: Tensor
    """(B, L, D)"""
    told_mask: Tensor | None
    """(B, L) bool; None where nothing is padded"""
    noise: Tensor
    """(B, N, F)"""
    levels: Tensor
    """(B,) float32"""
    shares: Tensor
    """(B,) float32: 1, or 0 for what is not learned"""
    coded: bool

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "EditBatch":
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "EditBatch":
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "EditBatch":
        changed: dict[str, Any] = {"pictures": tuple(map(change, self.pictures))}
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), Tensor):
                changed[field.name] = change(value)
        return replace(self, **changed)


def collate(examples: Sequence[Example], coded: bool) -> EditBatch:
    """One batch of samples of one bucket; `coded`: their pictures are latents."""
    told, told_mask = joined([example.told for example in examples])
    return EditBatch(
        bucket=examples[0].bucket,
        pictures=tuple(map(_stacked, zip(*(example.pictures for example in examples), strict=True))),
        told=told,
        told_mask=told_mask,
        noise=_stacked([example.noise for example in examples]),
        levels=torch.tensor([example.level for example in examples], dtype=torch.float32),
        shares=torch.tensor([example.share for example in examples], dtype=torch.float32),
        coded=coded,
    )


def _stacked(arrays: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
