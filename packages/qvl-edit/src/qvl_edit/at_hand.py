"""What is stored for a recipe already, as `check` knows it: without weights, and before all of it is written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl_core.training.engine import DTYPES
from qvl_core.training.store import HEAD, Store
from qvl_data.errors import BadSample
from qvl_data.sample import Sample
from qvl_data.sources import Mixture
from qvl_edit.embed import open_pictures
from qvl_edit.filed import FILES_FIX, FiledEmbeddings, check_heads
from qvl_edit.geometry import Geometry
from qvl_edit.model import call_class
from qvl_edit.opening import ABOUT, RELEASED, checkpoint
from qvl_edit.questions import sources_of, target_of
from qvl_edit.recipe import EditRecipe
from qvl_edit.released import Configs, transformer_shapes
from qvl_edit.slots import Coded, InSlot, Told, said
from qvl_edit.stored import FIX, LATENTS_FIX, StoredEmbeddings, StoredLatents, about, about_latents
from qvl_edit.texts import directed


@dataclass(frozen=True)
class AtHand:
    """Embeddings and latents; None for what is not named, or not written yet."""

    recipe: EditRecipe
    told: Told | None
    coded: Coded | None

    @classmethod
    def of(cls, recipe: EditRecipe, lists: Mapping[str, Mixture], made: Configs, geometry: Geometry) -> "AtHand":
        """Raises BadInput for what training would refuse, as far as it can be known here."""
        texts, pictures = _origins(recipe, made, geometry)
        return cls(recipe, _told(recipe, lists, made, texts), _coded(recipe, made, pictures))

    def unwritten(self) -> Iterator[str]:
        """A sentence for each folder that is named and not there."""
        stored = self.recipe.stored
        missing = {
            "embeddings": stored.embeddings if self.told is None else None,
            "latents": stored.latents if self.coded is None else None,
        }
        for name, folder in missing.items():
            if folder is not None:
                yield (
                    f"stored.{name}: {folder} is not written yet; before training run `qvl-edit extract` with this "
                    "recipe."
                )

    def of_slot(self, sample: Sample, wanted: InSlot) -> Iterator[str]:
        """What there is of a slot, or why it cannot be used."""
        target, sources = directed(wanted.choice.text, target_of(sample), sources_of(sample))
        try:
            if self.told is not None:
                pieces = self.told(sample, sources, said(sample, wanted.choice))
                yield f"{sum(map(len, pieces)):,} tokens of text and sources"
            if self.coded is not None:
                shown = zip((target, *sources), wanted.bucket.sizes, strict=True)
                yield f"latents of {len([self.coded(sample, *one) for one in shown])} pictures"
        except BadSample as error:
            yield str(error)


def _origins(recipe: EditRecipe, made: Configs, geometry: Geometry) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides the values of embeddings and of latents. Left out is what only weights, or a GPU, would say."""
    precision = recipe.train.precision
    dtype = DTYPES["fp32" if precision == "auto" else precision]
    if recipe.model.name in RELEASED:
        texts, pictures = made.profile.about(), about_latents(geometry, None, dtype)
    else:
        with checkpoint(recipe.model, ABOUT) as folder:
            texts = about(made.profile, geometry, folder, open_pictures(folder, made.profile), dtype)
            there = any((folder / "vae").glob("*.safetensors"))
            pictures = about_latents(geometry, folder if there else None, dtype)
    if precision == "auto":
        texts, pictures = ({name: one[name] for name in one if name != "dtype"} for one in (texts, pictures))
    return texts, pictures


def _told(recipe: EditRecipe, lists: Mapping[str, Mixture], made: Configs, origin: Mapping[str, Any]) -> Told | None:
    if recipe.stored.layout == "files":
        for samples in lists.values():
            check_heads(samples, origin, FILES_FIX)
        return FiledEmbeddings(transformer_shapes(made).config[call_class(made.profile).width]).pieces
    folder = Path(str(recipe.stored.embeddings)).expanduser()
    return StoredEmbeddings(Store.open(folder, origin, FIX)).pieces if (folder / HEAD).is_file() else None


def _coded(recipe: EditRecipe, made: Configs, origin: Mapping[str, Any]) -> Coded | None:
    if recipe.stored.latents is None:
        return None
    folder = Path(recipe.stored.latents).expanduser()
    return StoredLatents(Store.open(folder, origin, LATENTS_FIX), made.grid) if (folder / HEAD).is_file() else None
