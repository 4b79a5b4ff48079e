"""The latents of all pictures that a recipe learns, once, for `stored.latents`: a part of `qvl-edit extract`.

FOLDER/store.json           autoencoder, sizes and type, which training compares; versions
FOLDER/shards/              latents as tokens, by the content of a picture's file and its size (`stored`)

A picture is encoded by itself, so training from the folder equals training from pictures to the bit on a device of the
same kind and with the same versions (`pictures.vae_batch` 1), else to rounding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl_core.training.engine import DTYPES, resolve_precision
from qvl_core.training.filling import Walk, fill
from qvl_core.training.left_out import left_out
from qvl_core.training.parts import Micro
from qvl_core.training.store import Store
from qvl_core.training.world import World
from qvl_data.media import in_memory
from qvl_data.progress import track
from qvl_data.sample import Sample
from qvl_data.sources import Mixture
from qvl_data.windows import Windows
from qvl_edit.cut import Size
from qvl_edit.geometry import Geometry, numbers, resized
from qvl_edit.latents import Vae
from qvl_edit.opening import ABOUT, checkpoint, geometry_of
from qvl_edit.packing import Grid
from qvl_edit.parts import open_vae
from qvl_edit.profile import Profile, read_grid, read_profile
from qvl_edit.questions import Asking, bucket_of, buckets_of, sources_of, target_of, texts_of
from qvl_edit.recipe import EditRecipe
from qvl_edit.stored import about_latents, content, latent_key
from qvl_edit.texts import directed

WINDOW = 512  # samples of a shard: some 300 MB with one source each at 512 pixels, in bf16
FILES = (*ABOUT, "vae/*.safetensors")


def encode(recipe: EditRecipe, lists: Sequence[Mixture], out: Path, batch: int, world: World) -> None:
    """Write what is lacking in the folder `out`.

    batch  samples that are read together

    Raises BadInput for a folder of another autoencoder, size or type, and for more bad samples than `data.max_bad`.
    """
    dtype = DTYPES[resolve_precision(recipe.train.precision, world.device)]
    with checkpoint(recipe.model, FILES) as folder:
        profile = read_profile(folder)
        geometry, grid = geometry_of(recipe.pictures, profile, folder), read_grid(folder)
        vae = open_vae(folder, dtype, 1).to(world.device)
        origin = about_latents(geometry, folder, dtype)
    said = {"torch": torch.__version__, "device": world.device.type}
    store = world.on_first(lambda: Store.begin(out, origin, "name another folder in stored.latents", said))
    asking = Asking(recipe.mixture.inverse, recipe.mixture.sources)
    windows = Windows(lists, WINDOW, asking.said)
    walk = Walk(windows, batch, _Pictures(windows, store, profile, geometry, asking))
    names, there = windows.names(), set(world.on_first(store.shards))  # as all have it, before one writes
    bad = left_out(store, [name for name in names if name in there])
    own = [number for number in range(len(names)) if names[number] not in there][world.rank :: world.size]
    watched = None if world.rank else track(own, f"encode {out}", len(own))
    entries = partial(_encoded, vae=vae, grid=grid, device=world.device, seen=set())
    world.on_each(
        lambda: fill(store, walk, own, entries, bad, recipe.data.max_bad, world, recipe.data.workers, watched)
    )
    world.on_first(lambda: _finish(out, store))


def _finish(out: Path, store: Store) -> None:
    store = store.again()
    store.tidy()
    print(f"{out} holds the latents of {len(store):,} pictures; train with stored.latents={out}.")


@dataclass(frozen=True)
class _Pixels:
    """Pictures (3, H, W) of several sizes and their keys."""

    keys: tuple[bytes, ...]
    pixels: tuple[Tensor, ...]

    def to(self, device: Any, non_blocking: bool = False) -> "_Pixels":
        return _Pixels(self.keys, tuple(one.to(device, non_blocking=non_blocking) for one in self.pixels))

    def pin_memory(self) -> "_Pixels":
        return _Pixels(self.keys, tuple(one.pin_memory() for one in self.pixels))


def _encoded(
    batch: _Pixels, known: Mapping[bytes, Tensor], vae: Vae, grid: Grid, device: torch.device, seen: set[bytes]
) -> dict[bytes, Tensor]:
    """Latents as tokens (N, F) of the pictures that were not seen before, which they are then."""
    found: dict[bytes, Tensor] = {}
    for key, pixels in zip(batch.keys, batch.pixels, strict=True):
        if key not in seen:
            found[key] = grid.pack(vae.raw(pixels.to(device)[None]))[0].cpu()
            seen.add(key)
    return found


@dataclass(frozen=True)
class _Pictures:
    """Pictures that samples learn and the store has not, at their sizes, for `qvl_core.training.filling`."""

    windows: Windows
    store: Store
    profile: Profile
    geometry: Geometry
    asking: Asking

    def __call__(self, numbers: Sequence[int]) -> Micro:
        found, bad = self.windows.gathered(numbers, self._new)
        batch = _Pixels(*map(tuple, zip(*found, strict=True))) if found else None
        return Micro(batch, len(found), 0, (), 0, bad)

    def _new(self, sample: Sample, mixture: Mixture) -> Iterator[tuple[bytes, Tensor]]:
        """Raises BadSample, for the samples for which extraction does."""
        buckets_of(sample, self.asking.inverse, self.geometry)
        if not self.asking.of(sample, self.profile, mixture is self.windows.lists[0]):
            return
        wanted: set[tuple[int, Size]] = set()
        for text in texts_of(sample, self.asking.inverse):
            target, sources = directed(text, target_of(sample), sources_of(sample))
            wanted |= set(zip((target, *sources), bucket_of(sample, text, self.geometry).sizes, strict=True))
        shown = in_memory(sample, [index for index, _ in wanted])
        for index, size in sorted(wanted):
            (picture,) = content(shown, [index])
            key = latent_key(picture, size)
            if key not in self.store:
                yield key, torch.from_numpy(numbers(resized(shown.opener.open(shown.media[index]), size)).copy())
