"""What training stands on: a checkpoint as it is, the model `tiny`, or a checkpoint with another vision encoder.

What has to be made first is made once, in the run folder, so that an adapter can name it as its base.
"""

import hashlib
import json
from pathlib import Path

from qvl_core.qwen3vl.learning import base_of, check_weights_only
from qvl_core.qwen3vl.load import load_model, stored_precision
from qvl_core.recipe import blocks
from qvl_core.run import RunFolder
from qvl_core.training.world import World
from qvl_sft.recipe import SFTRecipe
from qvl_vision.checkpoint import save
from qvl_vision.recipe import Model
from qvl_vision.swapping import swap


def base_model(recipe: SFTRecipe, run: RunFolder, world: World) -> blocks.Model:
    """The model block to load."""
    if recipe.model.vision is None:
        return base_of(recipe, run, world)
    check_weights_only(recipe.model)
    # Named after all that decides what it is: a mended recipe in the same run folder takes no other's base.
    folder = run.path.resolve() / f"swapped-{_digest(recipe)}"
    world.on_first(lambda: folder.is_dir() or bool(_write_swapped(recipe, folder)))  # whole or not at all
    return from_folder(recipe.model, folder)


def from_folder(model: Model, folder: Path) -> Model:
    """The block of the model that was made of `model` in a folder."""
    return model.model_copy(update={"name": str(folder), "revision": None, "vision": None})


def _write_swapped(recipe: SFTRecipe, folder: Path) -> Path:
    """The base with its new vision encoder, in the type that its weights are stored in."""
    assert recipe.model.vision is not None
    plain = blocks.Model(name=recipe.model.name, revision=recipe.model.revision)
    precision = stored_precision(plain.name, plain.revision)
    base = load_model(plain, precision=precision, device="cpu", seed=recipe.train.seed)
    return save(*swap(base, **recipe.model.vision.model_dump(), seed=recipe.train.seed), folder)


def _digest(recipe: SFTRecipe) -> str:
    values = recipe.model.model_dump(mode="json", include={"name", "revision", "vision"}) | {"seed": recipe.train.seed}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
