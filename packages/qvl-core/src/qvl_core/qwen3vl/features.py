"""Outputs of a frozen vision tower on disk, so that later epochs skip it (`speed.cache_features`).

    cache = open_cache(model, run.path / "features", gib=50, precision="bf16")
    batches = SampleBatches(samples, ..., collate=CachedCollate(collate, cache))   # reads, in the workers
    loss = next_token_loss(model, batch.batch, encoded=cache.encode(model, batch))  # runs the tower on the rest, writes

A picture or clip is one file, named after its pixels, its grid, the tower's weights and how it computes. Each goes
through the tower alone, so that its features are the same bits whatever batch it first came in: a run that is resumed
on a half-filled cache ends like one that was never interrupted. A file carries the hash of what it holds; one that is
damaged, cut off or anything else is computed again. When the limit is reached nothing more is written.

Shapes: P patches of one medium, M its tokens, D the language model's width.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.batch import Batch
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.load import fingerprint
from qvl_core.qwen3vl.towers import tower_learns

Features = tuple[Tensor, ...]  # (M, D) each: the merger's output, then that of each DeepStack layer


@dataclass(frozen=True)
class Medium:
    """One picture or clip of a batch: its features if they were on disk, else its pixels."""

    key: str
    grid: tuple[int, int, int]  # time, height, width in patches
    pixels: Tensor | None = None  # (P, C), or (frames, 3, H, W) of a swapped tower
    features: Features | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Medium":
        pixels = None if self.pixels is None else change(self.pixels)
        return replace(self, pixels=pixels, features=self.features and tuple(map(change, self.features)))


@dataclass(frozen=True)
class FeatureBatch:
    """A batch whose pixels are replaced by its media, pictures and clips apart."""

    batch: Batch
    images: tuple[Medium, ...]
    videos: tuple[Medium, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = self.batch.to(device, non_blocking=non_blocking)
        return self._each(moved, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._each(self.batch.pin_memory(), lambda tensor: tensor.pin_memory())

    def _each(self, batch: Batch, change: Callable[[Tensor], Tensor]) -> Self:
        images, videos = (tuple(medium.each(change) for medium in media) for media in (self.images, self.videos))
        return replace(self, batch=batch, images=images, videos=videos)


@dataclass
class FeatureCache:
    """Features by key in a folder that several processes read and write."""

    folder: Path
    tower: str
    """What, beside the pixels, decides the features."""
    room: int
    """Bytes that this process may still write."""

    def key(self, pixels: np.ndarray[Any, Any], grid: Sequence[int]) -> str:
        digest = hashlib.sha256(f"{self.tower} {tuple(grid)} {pixels.dtype} {pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    def read(self, key: str) -> Features | None:
        """The features, if they are there and whole."""
        try:
            with safe_open(self._file(key), "pt") as file:
                features = tuple(file.get_tensor(f"{number}") for number in range(len(file.keys())))
                return features if (file.metadata() or {}).get("sha256") == _digest(features) else None
        except (OSError, SafetensorError, ValueError):
            return None

    def write(self, key: str, features: Features) -> None:
        """Keep features, unless the limit or the disk's end is reached. Readers see a whole file or none."""
        size = sum(tensor.nbytes for tensor in features)
        if size > self.room:
            return
        stored = tuple(tensor.detach().cpu().contiguous() for tensor in features)
        file = self._file(key)
        aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({f"{i}": tensor for i, tensor in enumerate(stored)}, aside, {"sha256": _digest(stored)})
            os.replace(aside, file)
        except (OSError, SafetensorError):  # no space: what was not kept is computed again
            self.room = 0
            aside.unlink(missing_ok=True)
            return
        self.room -= size

    def encode(self, model: Any, batch: FeatureBatch) -> dict[str, Any]:
        """What the tower gives for a batch on the device (`mm_encoder_outputs` of Qwen3VLModel.forward)."""
        images, videos = ([self._features(model, one) for one in media] for media in (batch.images, batch.videos))
        return as_given(images, videos)

    def _features(self, model: Any, medium: Medium) -> Features:
        if medium.features is not None:
            return medium.features
        assert medium.pixels is not None
        features = _run_tower(model, medium.pixels, medium.grid)
        self.write(medium.key, features)
        return features

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


@dataclass(frozen=True)
class CachedCollate:
    """A collation whose batches carry features from the cache in place of the pixels; it can be pickled to workers."""

    collate: Callable[[Sequence[Encoded]], Batch]
    cache: FeatureCache

    def __call__(self, samples: Sequence[Encoded]) -> FeatureBatch:
        batch = self.collate(samples)
        images = [m for s in samples for m in self._media(s.images, s.image_grid)]
        videos = [m for s in samples for m in self._media(s.videos, s.video_grid)]
        return FeatureBatch(replace(batch, pixel_values=None, pixel_values_videos=None), tuple(images), tuple(videos))

    def _media(self, pixels: Any, grids: Any) -> Iterator[Medium]:
        if pixels is None:
            return
        start = 0
        for t, h, w in grids.tolist():
            stop = start + (t if pixels.ndim == 4 else t * h * w)
            own = pixels[start:stop]
            key = self.cache.key(own, (t, h, w))
            features = self.cache.read(key)
            rest = None if features is not None else torch.from_numpy(np.ascontiguousarray(own))
            yield Medium(key, (t, h, w), rest, features)
            start = stop


def open_cache(model: Any, folder: Path, gib: float, precision: str, how: str = "", share: int = 1) -> FeatureCache:
    """The cache of a loaded and tuned model, `gib` large, of which this process may fill one part in `share`.

    how  further settings that change the features in their last bits

    Raises BadInput if the tower or a merger is trained.
    """
    if tower_learns(model):
        raise BadInput(
            "speed.cache_features: the vision tower or a merger is trained, so what it gives changes from step to "
            "step; freeze vision, merger and deepstack_mergers in `tune`, or remove the key."
        )
    weights = fingerprint(model.model.visual)
    tower = f"{weights} {precision} {model.config._attn_implementation} {model.device.type} {torch.__version__} {how}"
    there = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) if folder.is_dir() else 0
    return FeatureCache(folder, tower, max(0, int((gib * 2**30 - there) / share)))


def sweep(folder: Path) -> None:
    """Remove what killed writers left half-written; for a moment in which nothing writes into the folder."""
    for leftover in folder.glob("*/.*.tmp"):
        leftover.unlink(missing_ok=True)


def as_given(images: Sequence[Features], videos: Sequence[Features]) -> dict[str, Any]:
    """Features of all media of a batch, in order, as `mm_encoder_outputs` of Qwen3VLModel.forward."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    given = {}
    for kind, media in (("image", images), ("video", videos)):
        if media:
            merged, *deep = zip(*media, strict=True)
            given[kind] = BaseModelOutputWithDeepstackFeatures(pooler_output=merged, deepstack_features=deep)
    return given


def _run_tower(model: Any, pixels: Tensor, grid: tuple[int, int, int]) -> Features:
    t, h, w = grid
    given = torch.tensor([grid], device=pixels.device)
    bounds = torch.arange(0, t * h * w + 1, h * w, dtype=torch.int32, device=pixels.device)  # of its frames
    (features,) = run_tower(model, pixels, given, bounds, h * w)
    return features


@torch.no_grad()
def run_tower(model: Any, pixels: Tensor, grids: Tensor, bounds: Tensor, longest: int) -> list[Features]:
    """What the tower gives for each of several media of a kind.

    grids    (M, 3) time, height, width in patches
    bounds   (F + 1,) int32 of the frames among the patches
    longest  patches of the largest frame
    """
    out = model.model.get_image_features(
        pixels, grids, return_dict=True, image_cu_seqlens=bounds, image_max_seqlen=longest
    )
    return list(zip(out.pooler_output, *out.deepstack_features, strict=True))


def _digest(features: Features) -> str:
    digest = hashlib.sha256()
    for tensor in features:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
