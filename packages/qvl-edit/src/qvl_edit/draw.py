"""Pictures from embeddings: what a pipeline and the previews of a training run draw by.

Pictures of one bucket are drawn together. Each has a seed of its own, so that it does not depend on the others.

Shapes: B pictures, N tokens of F features, C channels of h x w latents, L tokens of a text of width D.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qvl_core.training.seeds import first_noise
from qvl_edit.batch import Array
from qvl_edit.cut import Bucket
from qvl_edit.denoise import denoise, guided
from qvl_edit.embed import padded
from qvl_edit.latents import Vae
from qvl_edit.model import Call, Given
from qvl_edit.sampling import Sampling
from qvl_edit.times import Shift

TOKENS = 2**13  # of pictures in one forward: a picture of 1024 x 1024 pixels with one source


@dataclass(frozen=True)
class Conditions:
    """What a picture is drawn from.

    told     (L, D) embedding of the text and the sources
    untold   the same of the negative text; None where nothing is guided
    sources  (3, H, W) each, in [-1, 1], of the bucket's sizes
    """

    told: Tensor
    untold: Tensor | None
    bucket: Bucket
    sources: tuple[Array, ...]
    seed: int


def draw(
    transformer: Any,
    call: Call,
    vae: Vae,
    each: Sequence[Conditions],
    shift: Shift,
    sampling: Sampling,
    on_step: Callable[[int, Tensor], None] | None = None,
    batch: int | None = None,
) -> list[Tensor]:
    """(3, H, W) in about [-1, 1] of each picture.

    shift    of noise levels, where `sampling` names none
    batch    pictures of one forward, at most; None: as many as have `TOKENS`
    on_step  is called with the number of a step and the latents (B, C, h, w) of those that are drawn together
    """
    found: dict[int, Tensor] = {}
    for places in together(each, call, batch):
        latents = torch.empty(0)
        steps = drawn_latents(transformer, call, vae, [each[place] for place in places], shift, sampling)
        for number, latents in enumerate(steps, 1):
            if on_step is not None:
                on_step(number, latents)
        found |= zip(places, vae.decode(latents), strict=True)
    return [found[place] for place in range(len(each))]


def together(each: Sequence[Conditions], call: Call, batch: int | None = None) -> list[list[int]]:
    """Places of pictures of one bucket, and of texts of one length where that has to be; `batch` or as many as have
    `TOKENS`. Buckets are in the order of the first."""
    groups: dict[tuple[Bucket, tuple[int, ...]], list[int]] = {}
    for place, one in enumerate(each):
        lengths = () if call.padded else tuple(len(said) for said in (one.told, one.untold) if said is not None)
        groups.setdefault((one.bucket, lengths), []).append(place)
    return [
        places[start : start + most]
        for (bucket, _), places in groups.items()
        for most in (batch or max(1, TOKENS // sum(map(call.grid.tokens, bucket.sizes))),)
        for start in range(0, len(places), most)
    ]


@torch.no_grad()
def drawn_latents(
    transformer: Any, call: Call, vae: Vae, each: Sequence[Conditions], shift: Shift, sampling: Sampling
) -> Iterator[Tensor]:
    """Latents (B, C, h, w) after each step, of pictures of one bucket."""
    device, bucket, grid = next(transformer.parameters()).device, each[0].bucket, call.grid
    shown = zip(*(one.sources for one in each), strict=True)
    sources = [grid.pack(vae.encode(torch.from_numpy(np.stack(one)).to(device))) for one in shown]  # (B, M, F)

    def saying(embeddings: Sequence[Tensor]) -> Callable[[Tensor, float], Tensor]:
        given, step = Given(sources, *_stacked(embeddings, device), bucket), call.drawing(transformer)

        def direction(latents: Tensor, level: float) -> Tensor:
            return step(transformer, latents, torch.full((len(latents),), level, device=device), given).float()

        return direction

    told = direction = saying([one.told for one in each])
    if sampling.guided:
        untold = saying([one.untold for one in each if one.untold is not None])

        def direction(latents: Tensor, level: float) -> Tensor:
            return guided(told(latents, level), untold(latents, level), sampling.guidance, call.rescaled)

    shape = (vae.channels, *grid.places(bucket.target))
    noise = grid.pack(first_noise(shape, [one.seed for one in each])).to(device)  # (B, N, F)
    moved = shift if sampling.shift is None else replace(Shift.constant(sampling.shift), own=shift.own)
    for latents in denoise(direction, noise, moved.grid(sampling.steps, grid.tokens(bucket.target))):
        yield grid.unpack(latents, bucket.target)


def _stacked(embeddings: Sequence[Tensor], device: Any) -> tuple[Tensor, Tensor | None]:
    """(B, L, D) and (B, L), true where there is a token; None where all are."""
    states, mask = padded(embeddings)
    return states.to(device), None if mask is None else mask.to(device)
