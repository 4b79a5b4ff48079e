"""`qvl-edit extract`: the embeddings of all that a recipe's data lists ask, once, so that training has no text encoder.

FOLDER/store.json           template, text encoder, sizes and type, which training compares; versions
FOLDER/shards/              embeddings by the content of pictures and text (`stored`)
FOLDER/left_out.jsonl       what could not be used

The lists are cut into windows of 128 samples, and a window is a shard: what a killed run has not written the next one
does, and several processes, on one machine or many, share the windows out. A folder may be added to from other data;
what is there already is not computed again.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.evaluation import LEFT_OUT, write_lines
from qvl_core.training.engine import DTYPES, resolve_precision, set_products
from qvl_core.training.filling import Walk, fill
from qvl_core.training.left_out import check_bad, left_out
from qvl_core.training.parts import Micro
from qvl_core.training.store import Store
from qvl_core.training.world import World, processes
from qvl_data.media import in_memory
from qvl_data.progress import track
from qvl_data.sample import Sample
from qvl_data.sources import Mixture, mixtures
from qvl_data.windows import Windows
from qvl_edit.embed import Embedder, EncoderInput
from qvl_edit.encode import encode
from qvl_edit.filed import check_head, clear_rows, write_files, write_head
from qvl_edit.geometry import Geometry, resized
from qvl_edit.opening import FOR_TEXTS, checkpoint, geometry_of
from qvl_edit.profile import Profile, read_profile
from qvl_edit.questions import Asking, buckets_of
from qvl_edit.recipe import EditRecipe
from qvl_edit.stored import StoredEmbeddings, about, content, key
from qvl_edit.tasks import expanded

SHARDS = ".shards"  # beside files, until these are whole
WINDOW = 128  # samples of a shard: some 400 MB with one source each, in bf16


def extract(recipe: EditRecipe, out: Path | None = None, batch: int = 4, layout: str = "shards") -> None:
    """Write what is lacking in the folder `out` (default: the recipe's `stored.embeddings`), and the latents of its
    pictures in the recipe's `stored.latents`, if that is named.

    batch   samples that are embedded together
    layout  shards; or files: of the training list, as upstream lays them out (`filed`)

    Raises BadInput for a folder of another model, template, size or type, and for more bad samples than `data.max_bad`.
    """
    out = out or (Path(recipe.stored.embeddings).expanduser() if recipe.stored.embeddings else None)
    if out is None:
        raise BadInput("--out: is not given; name a folder for the embeddings, or set stored.embeddings.")
    lists = tuple(mixtures(expanded(recipe.data)).values())
    if any(mixture.augments for mixture in lists):
        raise BadInput("data.train is augmented, and embeddings are of pictures as they are; remove `augment`.")
    with processes(recipe.parallel.model_copy(update={"strategy": "auto"})) as world:
        set_products(recipe, world.device)
        if layout == "files":
            _write_files(recipe, lists[0], out, batch, world)
        else:
            _embed(recipe, lists, out, batch, world)
        if recipe.stored.latents is not None:
            encode(recipe, lists, Path(recipe.stored.latents).expanduser(), batch, world)


def _write_files(recipe: EditRecipe, samples: Mixture, out: Path, batch: int, world: World) -> None:
    """A file for each text, by way of shards, which a killed run leaves for the next one and a whole one removes."""
    shards = out / SHARDS
    store, profile, origin = _embed(recipe, [samples], shards, batch, world, files=out)
    store = world.on_first(store.again)
    asking = Asking(recipe.mixture.inverse, recipe.mixture.sources)

    def written() -> None:
        stored = StoredEmbeddings(replace(store))  # let go of at the end: Windows removes no file that is mapped
        write_files(samples, stored, asking, profile, out, world.rank, world.size)

    world.on_first(lambda: clear_rows(samples, out))
    world.on_each(written)
    if world.rank == 0:
        write_head(out, origin)
        shutil.rmtree(shards)
        print(
            f"{out} holds them as files; train with data.train={out} stored.layout=files, with this folder and that of "
            "the pictures in data.allow_root."
        )


def _embed(
    recipe: EditRecipe, lists: Sequence[Mixture], out: Path, batch: int, world: World, files: Path | None = None
) -> tuple[Store, Profile, dict[str, Any]]:
    """Write what is lacking; what it was written to, with what, and what decides its values.

    files  the folder whose files the shards become
    """
    dtype = DTYPES[resolve_precision(recipe.train.precision, world.device)]
    with checkpoint(recipe.model, FOR_TEXTS) as folder:
        profile = read_profile(folder)
        geometry = geometry_of(recipe.pictures, profile, folder)
        embedder = Embedder.open(folder, profile, dtype, world.device)
        origin = about(profile, geometry, folder, embedder.pictures, dtype)
    if files is not None:
        check_head(files, origin, "choose another --out")
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    said = {**versions, "device": world.device.type, "profile": profile.name}
    store = world.on_first(lambda: Store.begin(out, origin, "choose another --out", said))

    asking = Asking(recipe.mixture.inverse, recipe.mixture.sources, recipe.sampling.negative)
    windows = Windows(lists, WINDOW, asking.said)
    walk = Walk(windows, batch, _Questions(windows, store, profile, geometry, asking))
    names, there = windows.names(), set(world.on_first(store.shards))  # as all have it, before one writes
    bad = left_out(store, [name for name in names if name in there])
    own = [number for number in range(len(names)) if names[number] not in there][world.rank :: world.size]
    watched = None if world.rank else track(own, f"extract {out}", len(own))
    entries = partial(_embedded, embedder=embedder)
    world.on_each(
        lambda: fill(store, walk, own, entries, bad, recipe.data.max_bad, world, recipe.data.workers, watched)
    )
    rest = f"train with stored.embeddings={out}" if files is None else "they become files"
    world.on_first(lambda: _finish(files or out, rest, store, names, recipe.data.max_bad, windows.samples))
    return store, profile, origin


def _finish(out: Path, rest: str, store: Store, names: Sequence[str], allowed: int, samples: int) -> None:
    """Tidy the store, and say what there is in the folder, and the rest. Raises BadInput for more bad samples than are
    allowed."""
    bad = left_out(store, names)
    write_lines(out / LEFT_OUT, [*bad.values()])
    check_bad(bad, allowed)
    store.again().tidy()
    print(f"{out} holds the embeddings of {samples - len(bad):,} samples, {len(bad):,} are left out; {rest}.")


@dataclass(frozen=True)
class _Batch:
    """Questions with their pictures, and the contents of these."""

    shown: tuple[tuple[bytes, ...], ...]
    asked: tuple[EncoderInput, ...]

    def to(self, device: Any, non_blocking: bool = False) -> "_Batch":
        return self

    def pin_memory(self) -> "_Batch":
        return self


def _embedded(batch: _Batch, known: Mapping[bytes, Tensor], embedder: Embedder) -> dict[bytes, Tensor]:
    """Embeddings by key, of what is not known."""
    pairs = list(zip(batch.shown, batch.asked, strict=True))
    new = [tuple(text for text in one.texts if key(shown, text) not in known) for shown, one in pairs]
    wanted = [(shown, replace(one, texts=texts)) for (shown, one), texts in zip(pairs, new, strict=True) if texts]
    found: dict[bytes, Tensor] = {}
    if wanted:
        for (shown, one), made in zip(wanted, embedder([one for _, one in wanted]), strict=True):
            found[key(shown)] = made.shared.cpu()
            found |= {key(shown, text): part.cpu() for text, part in zip(one.texts, made.texts, strict=True)}
    return found


@dataclass(frozen=True)
class _Questions:
    """What samples ask and the store has not, for `qvl_core.training.filling`."""

    windows: Windows
    store: Store
    profile: Profile
    geometry: Geometry
    asking: Asking

    def __call__(self, numbers: Sequence[int]) -> Micro:
        found, bad = self.windows.gathered(numbers, self._new)
        batch = _Batch(*map(tuple, zip(*found, strict=True))) if found else None
        return Micro(batch, len(found), 0, (), 0, bad)

    def _new(self, sample: Sample, mixture: Mixture) -> Iterator[tuple[tuple[bytes, ...], EncoderInput]]:
        """Raises BadSample, also for what training could not resize."""
        buckets_of(sample, self.asking.inverse, self.geometry)
        for question in self.asking.of(sample, self.profile, mixture is self.windows.lists[0]):
            shown = in_memory(sample, question.pictures)
            pictures = content(shown, question.pictures)
            if any(key(pictures, text) not in self.store for text in (None, *question.texts)):
                seen = tuple(self._seen(shown, at) for at in question.pictures)
                yield pictures, EncoderInput(question.texts, seen)

    def _seen(self, sample: Sample, index: int) -> Image:
        picture = sample.opener.open(sample.media[index])
        return resized(picture, self.geometry.vl((picture.height, picture.width)))
