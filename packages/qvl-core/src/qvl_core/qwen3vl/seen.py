"""What the vision tower gives for samples that are read several times: computed once, handed to every forward.

    seen = look(model, samples)                                   # one for each sample
    losses = token_losses(model, blind(batch), given(batch_samples, batch_seen, device))

Features wait on the host, where the pixels do: as many samples can be held with them as without.

Shapes: P patches, M media.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from numpy.typing import NDArray

from qvl_core.qwen3vl.batch import Batch, by_tokens, media
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.features import Features, as_given, run_tower

PATCHES = 32768  # at most in one pass of the tower, unless a sample alone has more


@dataclass(frozen=True)
class Seen:
    """Features of a sample's pictures and clips, in order, on the host."""

    images: tuple[Features, ...] = ()
    videos: tuple[Features, ...] = ()


def look(model: Any, samples: Sequence[Encoded]) -> list[Seen]:
    """What the tower of a Qwen3-VL, as loaded or with adapters, gives for the media of each sample."""
    device = model.get_input_embeddings().weight.device
    found: list[Seen] = []
    for group in by_tokens(samples, PATCHES, _patches):
        inputs = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in media(group).items()
        }
        images, videos = _features(model, inputs, "image", ""), _features(model, inputs, "video", "_videos")
        found += [Seen(_next(images, sample.image_grid), _next(videos, sample.video_grid)) for sample in group]
    return found


def given(samples: Sequence[Encoded], seen: Sequence[Seen], device: torch.device) -> dict[str, Any]:
    """The features of a batch, as `mm_encoder_outputs` of Qwen3VLModel.forward.

    seen  of each sample; one that shows only the first media of what was seen takes their features
    """
    pairs = list(zip(samples, seen, strict=True))
    images = [one for sample, its in pairs for one in _next(iter(its.images), sample.image_grid)]
    videos = [one for sample, its in pairs for one in _next(iter(its.videos), sample.video_grid)]
    return as_given(*([tuple(part.to(device) for part in one) for one in kind] for kind in (images, videos)))


def blind(batch: Batch) -> Batch:
    """The batch without pixels, for a forward that is given their features."""
    return replace(batch, pixel_values=None, pixel_values_videos=None)


def _features(model: Any, inputs: dict[str, Any], kind: str, suffix: str) -> Iterator[Features]:
    """Of all media of a kind, one after the other."""
    if f"{kind}_grid_thw" not in inputs:
        return iter(())
    bounds, longest = inputs[f"{kind}_cu_seqlens"], inputs[f"{kind}_max_seqlen"]
    found = run_tower(model, inputs[f"pixel_values{suffix}"], inputs[f"{kind}_grid_thw"], bounds, longest)
    return (tuple(part.cpu() for part in one) for one in found)


def _next(features: Iterator[Features], grid: NDArray[Any] | None) -> tuple[Features, ...]:
    """Those of the next M media, as many as a sample has."""
    return tuple(islice(features, 0 if grid is None else len(grid)))


def _patches(sample: Encoded) -> int:
    return sum(int(grid.prod(axis=1).sum()) for grid in (sample.image_grid, sample.video_grid) if grid is not None)
