"""`qvl-metaquery encode`: the latents of all pictures that a recipe's data lists ask for, once, for `flow.latents`.

FOLDER/store.json           coder, size and type, which training compares; the scale that is applied in reading
FOLDER/shards/              latents by the content of the picture's file (`qvl_core.training.store`)
FOLDER/left_out.jsonl       what could not be used

The lists are cut into windows of 2,048 samples, and a window is a shard: what a killed run has not written the next one
does, and machines share the windows out (`--shard I/N`). Windows are named after the data, so a folder may be added to
from other data; pictures that are there already are not decoded again. Equal pictures are encoded once, unless two
machines meet one at the same time.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.evaluation import LEFT_OUT, write_lines
from qvl_core.recipe.blocks import Parallel
from qvl_core.training.engine import DTYPES, resolve_precision, set_products
from qvl_core.training.filling import Walk, fill
from qvl_core.training.left_out import check_bad, left_out
from qvl_core.training.store import Store
from qvl_core.training.world import processes
from qvl_data.hashing import media_key
from qvl_data.progress import track
from qvl_data.sample import Sample
from qvl_data.sources import Mixture, mixtures
from qvl_data.windows import Windows
from qvl_metaquery.batch import Array
from qvl_metaquery.coder import Coder, open_coder
from qvl_metaquery.latents import about
from qvl_metaquery.opening import open_sana
from qvl_metaquery.pixels import square, stacked
from qvl_metaquery.recipe import MetaQueryRecipe
from qvl_metaquery.tiny import tiny_sana
from qvl_metaquery.wanted import target_of

WINDOW = 2048  # samples of a shard: 32 MB at 512 pixels


def part_of(shard: str) -> tuple[int, int]:
    """Which part of how many `--shard` says. Raises BadInput."""
    said = re.fullmatch(r"(\d+)/(\d+)", shard)
    if said is None or not 1 <= int(said[1]) <= int(said[2]):
        raise BadInput(f"--shard {shard}: write I/N, from 1/8 to 8/8 for eight machines.")
    return int(said[1]), int(said[2])


def encode(recipe: MetaQueryRecipe, out: Path | None = None, shard: str = "1/1", batch: int = 8) -> None:
    """Write what is lacking in the folder `out` (default: the recipe's `flow.latents`).

    shard  the part of this process, I/N
    batch  pictures that are read together

    Raises BadInput for a folder of another coder, size or type, and for more bad samples than `data.max_bad`.
    """
    part, parts = part_of(shard)
    out = out or (Path(recipe.flow.latents).expanduser() if recipe.flow.latents else None)
    if out is None:
        raise BadInput("--out: is not given; name a folder for the latents, or set flow.latents.")
    lists = tuple(mixtures(recipe.data).values())
    with processes(Parallel()) as world:
        set_products(recipe, world.device)
        coder = coder_of(recipe, world.device)
        said = {"scale": coder.scale, "device": world.device.type, "torch": torch.__version__}
        store = Store.begin(out, about(coder, recipe.flow.size), "choose another --out", said)
        windows = Windows(lists, WINDOW)
        walk = Walk(windows, batch, _Pictures(store, recipe.flow.size), _Keyed.of)
        names, there = windows.names(), set(store.shards())
        own = range(part - 1, len(names), parts)
        missing = [number for number in own if names[number] not in there]
        watched = track(missing, f"encode {out}", len(own), len(own) - len(missing))
        seen: set[bytes] = set()
        entries = partial(_encoded, coder=coder, device=world.device, seen=seen)
        fill(store, walk, missing, entries, recipe.data.max_bad, world, recipe.data.workers, watched)
    bad = left_out(store, [name for name in names if name in set(store.shards())])
    check_bad(bad, recipe.data.max_bad)
    if lacking := set(names) - set(store.shards()):
        print(f"{out}: part {part} of {parts} is done; {len(lacking)} of {len(names)} shards are still to come.")
        return
    store = store.again()
    store.tidy()
    bad = left_out(store, names)
    write_lines(out / LEFT_OUT, [*bad.values()])
    print(f"{out} holds {len(store):,} pictures, {len(bad):,} samples are left out; train with flow.latents={out}.")


def coder_of(recipe: MetaQueryRecipe, device: torch.device) -> Coder:
    """The coder that training with `recipe` has. Raises BadInput."""
    dtype = DTYPES[resolve_precision(recipe.train.precision, device)]
    with TemporaryDirectory() as folder:
        tiny = recipe.sana.name == "tiny"
        sana = tiny_sana(Path(folder)) if tiny else open_sana(recipe.sana.name, recipe.sana.revision)
        coder = open_coder(sana / "vae", dtype).to(device)
    coder.latent_shape(recipe.flow.size)
    return coder


@dataclass(frozen=True)
class _Keyed:
    """Pictures (B, 3, S, S) and the keys of their files."""

    keys: tuple[bytes, ...]
    pixels: Tensor

    @classmethod
    def of(cls, found: Sequence[tuple[bytes, Array]]) -> "_Keyed":
        keys, pixels = zip(*found, strict=True)
        return cls(keys, stacked(pixels))

    def to(self, device: Any, non_blocking: bool = False) -> "_Keyed":
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "_Keyed":
        return replace(self, pixels=self.pixels.pin_memory())


def _encoded(
    pictures: _Keyed, held: Mapping[bytes, Tensor], coder: Coder, device: torch.device, seen: set[bytes]
) -> dict[bytes, Tensor]:
    """Latents of the pictures that were not seen before, which they are then."""
    new: dict[bytes, Tensor] = {}
    for key, pixels in zip(pictures.keys, pictures.to(device).pixels.split(1), strict=True):
        if key not in seen:
            new[key] = coder.raw(pixels)[0]
            seen.add(key)
    return new


@dataclass(frozen=True)
class _Pictures:
    """The picture that a sample asks for, if the store has it not."""

    store: Store
    size: int

    def __call__(self, sample: Sample, mixture: Mixture) -> Iterator[tuple[bytes, Array]]:
        media = sample.media[target_of(sample)]
        key = media_key(media, sample.opener)
        if key not in self.store:
            yield key, square(sample.opener.open(media), self.size)
