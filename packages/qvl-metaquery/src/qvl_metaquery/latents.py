"""Latents that `qvl-metaquery encode` has stored: what the coder gave, found by the content of a picture's file.

So the order of samples, their splits and mixtures do not matter. Training from them equals training from pictures to
the bit on a device of the same kind and with the same versions, else to rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl_core.errors import BadInput
from qvl_core.training.store import Store
from qvl_data.errors import BadSample
from qvl_data.hashing import media_key
from qvl_data.media import media_name
from qvl_data.sample import Sample
from qvl_data.sources import Mixture
from qvl_metaquery.coder import Coder
from qvl_metaquery.wanted import target_of

if TYPE_CHECKING:
    from qvl_metaquery.batch import Array
    from qvl_metaquery.recipe import MetaQueryRecipe

LOOKED_UP = 16  # pictures of each list, before training


@dataclass(frozen=True)
class StoredLatents:
    """`DrawingSamples.latents`."""

    store: Store
    scale: float

    def __call__(self, sample: Sample) -> "Array":
        """(C, H, W) of the picture that a sample asks for. Raises BadSample.

        One that is not there is left out and counted as a damaged one is (data.max_bad, 0 unless the recipe says
        otherwise): to look up all of them before the first step would read every file of a large set.
        """
        media = sample.media[target_of(sample)]
        found = self.store.get(media_key(media, sample.opener))
        if found is None:
            problem = (
                f"{media_name(media)} is not in flow.latents ({self.store.folder}); add it with "
                "`qvl-metaquery encode`, in a new folder if its file was changed"
            )
            raise BadSample("not_encoded", problem, sample.place, sample.id)
        return (found.float() * self.scale).numpy()


def open_latents(recipe: "MetaQueryRecipe", coder: Coder, lists: Mapping[str, Mixture]) -> StoredLatents | None:
    """What `flow.latents` names. Raises BadInput if it is of another coder, size or type, or of other pictures."""
    if recipe.flow.latents is None:
        return None
    if lists["train"].augments:
        raise BadInput("flow.latents: data.train is augmented, and latents are of pictures as they are; remove either.")
    folder = Path(recipe.flow.latents).expanduser()
    fix = "name another folder in flow.latents, or write one: qvl-metaquery encode RECIPE --out FOLDER"
    stored = StoredLatents(Store.open(folder, about(coder, recipe.flow.size), fix), coder.scale)
    for name, mixture in lists.items():
        check_known(stored, name, mixture)
    return stored


def about(coder: Coder, size: int) -> dict[str, Any]:
    """What decides the values of stored latents."""
    return {"size": size, "dtype": str(coder.dtype).removeprefix("torch."), "coder": coder.origin()}


def check_known(stored: StoredLatents, name: str, mixture: Mixture) -> None:
    """Raise BadInput if none of a list's first pictures is stored: it was never encoded."""
    missing: BadSample | None = None
    for number in range(min(LOOKED_UP, mixture.chosen)):
        try:
            stored(mixture.sample(mixture.item(number)))
        except BadSample as error:
            missing = error if error.reason == "not_encoded" else missing
        else:
            return
    if missing is not None:
        raise BadInput(f"data.{name}: none of its first pictures is stored: {missing}")
