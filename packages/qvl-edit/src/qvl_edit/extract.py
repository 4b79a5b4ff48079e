"""`qvl-edit extract`: the embeddings of all that a recipe's data lists ask, once, so that training has no text encoder.

FOLDER/store.json           template, text encoder, sizes and type, which training compares; versions
FOLDER/shards/              embeddings by the content of pictures and text (`stored`)
FOLDER/left_out.jsonl       what could not be used

The lists are cut into windows of 128 samples, and a window is a shard: what a killed run has not written the next one
does, and several processes, on one machine or many, share the windows out. A folder may be added to from other data;
what is there already is not computed again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.training.engine import DTYPES, resolve_precision, set_products
from qvl_core.training.filling import Walk
from qvl_core.training.store import Store
from qvl_core.training.world import World, processes
from qvl_data.media import in_memory
from qvl_data.sample import Sample
from qvl_data.sources import Mixture, mixtures
from qvl_data.windows import Windows
from qvl_edit.embed import Embedder, EncoderInput, open_pictures
from qvl_edit.encode import encode
from qvl_edit.filed import Filed, check_head, discard, write_files
from qvl_edit.geometry import Geometry, resized
from qvl_edit.opening import FOR_TEXTS, checkpoint, geometry_of
from qvl_edit.profile import Profile, read_profile
from qvl_edit.questions import Asking, buckets_of
from qvl_edit.recipe import EditRecipe
from qvl_edit.stored import StoredEmbeddings, about, content, key
from qvl_edit.storing import fill_store
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
        with checkpoint(recipe.model, FOR_TEXTS) as folder:
            encoder = _Encoder.of(recipe, folder, world.device)
            if layout == "files":
                _write_files(recipe, lists[0], out, batch, encoder, world)
            else:
                _, said = _embed(recipe, lists, out, batch, encoder, world, out)
                if world.rank == 0:
                    print(f"{out} holds the embeddings of {said}; train with stored.embeddings={out}.")
        if recipe.stored.latents is not None:
            encode(recipe, lists, Path(recipe.stored.latents).expanduser(), batch, world)


@dataclass(frozen=True)
class _Encoder:
    """A checkpoint's text encoder as a recipe asks it; `origin` decides what it says."""

    folder: Path
    profile: Profile
    geometry: Geometry
    dtype: torch.dtype
    device: torch.device
    origin: dict[str, Any]

    @classmethod
    def of(cls, recipe: EditRecipe, folder: Path, device: torch.device) -> "_Encoder":
        dtype, profile = DTYPES[resolve_precision(recipe.train.precision, device)], read_profile(folder)
        geometry = geometry_of(recipe.pictures, profile, folder)
        origin = about(profile, geometry, folder, open_pictures(folder, profile), dtype)
        return cls(folder, profile, geometry, dtype, device, origin)

    def open(self) -> Embedder:
        return Embedder.open(self.folder, self.profile, self.dtype, self.device)


def _write_files(recipe: EditRecipe, samples: Mixture, out: Path, batch: int, encoder: _Encoder, world: World) -> None:
    """A file for each text, by way of shards, which a killed run leaves for the next one and a whole one removes."""
    check_head(out, encoder.origin, "choose another --out")
    filed = Filed.of(samples, out, encoder.origin, _windows(recipe, [samples]).names())
    if not world.on_first(filed.whole):
        store, said = _embed(recipe, [samples], out / SHARDS, batch, encoder, world, out)

        def written() -> None:
            stored = StoredEmbeddings(replace(store))  # let go of at the end: Windows removes no file that is mapped
            write_files(samples, stored, _asking(recipe), encoder.profile, out, world.rank, world.size)

        world.on_first(filed.begin)
        world.on_each(written)
        world.on_first(filed.finish)
        if world.rank == 0:
            print(f"{out} holds the embeddings of {said}.")
    if world.rank == 0:
        discard(out / SHARDS)
        print(
            f"{out} holds them as files; train with data.train={out} stored.layout=files, with this folder and that of "
            "the pictures in data.allow_root."
        )


def _embed(
    recipe: EditRecipe,
    lists: Sequence[Mixture],
    out: Path,
    batch: int,
    encoder: _Encoder,
    world: World,
    listed: Path,
) -> tuple[Store, str]:
    """Write what is lacking; what it was written to, and of how many samples it is. `listed` is the folder of
    left_out.jsonl."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    about = {**versions, "device": world.device.type, "profile": encoder.profile.name}
    store = world.on_first(lambda: Store.begin(out, encoder.origin, "choose another --out", about))
    windows = _windows(recipe, lists)
    questions = _Questions(lists[0], store, encoder.profile, encoder.geometry, _asking(recipe))
    walk = Walk(windows, batch, questions, _Batch.of)
    entries = partial(_embedded, opened=cache(encoder.open))
    store, bad = fill_store(store, walk, entries, recipe.data, world, f"extract {listed}", listed)
    return store, f"{windows.samples - bad:,} samples, {bad:,} are left out"


def _asking(recipe: EditRecipe) -> Asking:
    return Asking(recipe.mixture.inverse, recipe.mixture.sources, recipe.sampling.negative)


def _windows(recipe: EditRecipe, lists: Sequence[Mixture]) -> Windows:
    return Windows(lists, WINDOW, _asking(recipe).said)


@dataclass(frozen=True)
class _Batch:
    """Questions with their pictures, and the contents of these."""

    shown: tuple[tuple[bytes, ...], ...]
    asked: tuple[EncoderInput, ...]

    @classmethod
    def of(cls, found: Sequence[tuple[tuple[bytes, ...], EncoderInput]]) -> "_Batch":
        return cls(*map(tuple, zip(*found, strict=True)))

    def to(self, device: Any, non_blocking: bool = False) -> "_Batch":
        return self

    def pin_memory(self) -> "_Batch":
        return self


def _embedded(batch: _Batch, known: Mapping[bytes, Tensor], opened: Callable[[], Embedder]) -> dict[bytes, Tensor]:
    """Embeddings by key, of what is not known; the text encoder is opened for the first of them."""
    pairs = list(zip(batch.shown, batch.asked, strict=True))
    new = [tuple(text for text in one.texts if key(shown, text) not in known) for shown, one in pairs]
    wanted = [(shown, replace(one, texts=texts)) for (shown, one), texts in zip(pairs, new, strict=True) if texts]
    found: dict[bytes, Tensor] = {}
    if wanted:
        for (shown, one), made in zip(wanted, opened()([one for _, one in wanted]), strict=True):
            found[key(shown)] = made.shared.cpu()
            found |= {key(shown, text): part.cpu() for text, part in zip(one.texts, made.texts, strict=True)}
    return found


@dataclass(frozen=True)
class _Questions:
    """What a sample asks and the store has not; `learned` is the list that is trained on."""

    learned: Mixture
    store: Store
    profile: Profile
    geometry: Geometry
    asking: Asking

    def __call__(self, sample: Sample, mixture: Mixture) -> Iterator[tuple[tuple[bytes, ...], EncoderInput]]:
        """Raises BadSample, also for what training could not resize."""
        buckets_of(sample, self.asking.inverse, self.geometry)
        for question in self.asking.of(sample, self.profile, mixture is self.learned):
            shown = in_memory(sample, question.pictures)
            pictures = content(shown, question.pictures)
            if any(key(pictures, text) not in self.store for text in (None, *question.texts)):
                seen = tuple(self._seen(shown, at) for at in question.pictures)
                yield pictures, EncoderInput(question.texts, seen)

    def _seen(self, sample: Sample, index: int) -> Image:
        picture = sample.opener.open(sample.media[index])
        return resized(picture, self.geometry.vl((picture.height, picture.width)))
