"""The latents of all pictures that a recipe learns, once, for `stored.latents`: a part of `qvl-edit extract`.

FOLDER/store.json           autoencoder, sizes and type, which training compares; versions
FOLDER/shards/              latents as tokens, by the content of a picture's file and its size (`stored`)
FOLDER/left_out.jsonl       what could not be used

A picture is encoded by itself, so on a CPU in fp32 training from the folder equals training from pictures to the bit
(`pictures.vae_batch` 1, the same versions). On other devices and in 16 bits that was not compared; expect rounding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl_core.training.engine import DTYPES, resolve_precision
from qvl_core.training.filling import Walk
from qvl_core.training.store import Store
from qvl_core.training.world import World
from qvl_data.media import in_memory
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
from qvl_edit.storing import fill_store
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
    walk = Walk(windows, batch, _Pictures(lists[0], store, profile, geometry, asking), _Pixels.of)
    entries = partial(_encoded, vae=vae, grid=grid, device=world.device, seen=set())
    store, bad = fill_store(store, walk, entries, recipe.data, world, f"encode {out}", out)
    if world.rank == 0:
        print(
            f"{out} holds the latents of {len(store):,} pictures, {bad:,} samples are left out; train with "
            f"stored.latents={out}."
        )


@dataclass(frozen=True)
class _Pixels:
    """Pictures (3, H, W) of several sizes and their keys."""

    keys: tuple[bytes, ...]
    pixels: tuple[Tensor, ...]

    @classmethod
    def of(cls, found: Sequence[tuple[bytes, Tensor]]) -> "_Pixels":
        return cls(*map(tuple, zip(*found, strict=True)))

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
    """Pictures that a sample learns and the store has not, at their sizes; `learned` is the list that is trained on."""

    learned: Mixture
    store: Store
    profile: Profile
    geometry: Geometry
    asking: Asking

    def __call__(self, sample: Sample, mixture: Mixture) -> Iterator[tuple[bytes, Tensor]]:
        """Raises BadSample, for the samples for which extraction does."""
        buckets_of(sample, self.asking.inverse, self.geometry)
        if not self.asking.of(sample, self.profile, mixture is self.learned):
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
