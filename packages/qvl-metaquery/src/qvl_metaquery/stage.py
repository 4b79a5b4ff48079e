"""A stage that begins with the weights of an earlier one: all of them are taken, or the recipe is refused.

Optimizer, step and order of data begin anew; to go on with a run is the same command, or `--resume`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import open_config
from qvl_core.run import RunFolder
from qvl_metaquery.recipe import MetaQueryRecipe
from qvl_metaquery.settings import FILE, Settings
from qvl_metaquery.weights import OWN

_SHAPE = {"queries": "queries.number", "layers": "connector.layers", "width": "connector.width"}
_MAY_CHANGE = {
    "mllm": "model.name",
    "sana": "sana.name",
    "system": "queries.system",
    "caption_tokens": "queries.caption_tokens",
    "image_tokens": "queries.image_tokens",
    "size": "flow.size",
    "train_shift": "flow.train_shift",
    "sample_shift": "flow.sample_shift",
}


def settled(recipe: MetaQueryRecipe) -> MetaQueryRecipe:
    """The recipe as a run keeps it: the earlier stage by its whole path, since the run may be looked at from another
    folder, and `connector.width` null where it is the language model's, so that both ways to say it are one."""
    changed: dict[str, object] = {}
    if (stage := stage_of(recipe)) is not None:
        changed["model"] = recipe.model.model_copy(update={"init_from": str(stage)})
    width = recipe.connector.width
    if width is not None:
        model = open_config(recipe.model.name, recipe.model.revision)
        if width == model.get_text_config().hidden_size:
            changed["connector"] = recipe.connector.model_copy(update={"width": None})
    return recipe.model_copy(update=changed)


def stage_of(recipe: MetaQueryRecipe) -> Path | None:
    """The folder of the earlier stage whose weights a recipe begins with; of a run its final/."""
    if recipe.model.init_from is None:
        return None
    folder = Path(recipe.model.init_from).expanduser().resolve()
    return final if (final := RunFolder(folder).final).is_dir() else folder


def check_stage(folder: Path, settings: Settings) -> None:
    """Raise BadInput if weights of an earlier stage in `folder` are not of these shapes, naming the key to change."""
    if not (folder / FILE).is_file():
        raise BadInput(f"model.init_from: {folder} has no {FILE}; name the final/ of an earlier stage.")
    if not (folder / OWN).is_file():
        raise BadInput(f"model.init_from: {folder} has no {OWN}; train that stage to its end, and name its final/.")
    before = Settings.read(folder)
    for name, key in _SHAPE.items():
        was, now = (json.dumps(getattr(one, name)) for one in (before, settings))  # as a recipe has them
        if was != now:
            raise BadInput(
                f"model.init_from: {folder} has {key} {was}, this recipe {now}; set {key}={was}, or train from the "
                "beginning."
            )


def stage_report(folder: Path, settings: Settings, own: Mapping[str, Tensor], transformer: bool) -> str:
    """What was loaded from an earlier stage, what was not, and which keys are no longer what they were there.

    own          the weights that were loaded, by their names
    transformer  whether Sana's transformer is that of the stage
    """
    layers = [weight for name, weight in own.items() if name != "queries"]
    sana = (
        "and Sana's transformer as it was trained there" if transformer else "Sana's transformer was not trained there"
    )
    lines = [
        f"from {folder}, each weight in its place: queries {tuple(own['queries'].shape)}, connector "
        f"({len(layers)} tensors, {sum(weight.numel() for weight in layers):,} numbers), {sana}",
        "not from there: Qwen3-VL and the autoencoder, which no stage trains; optimizer, step and order of the data",
    ]
    before = Settings.read(folder)
    for name, key in _MAY_CHANGE.items():
        was, now = getattr(before, name), getattr(settings, name)
        if was != now:
            lines.append(f"changed since: {key} was {was}, is {now}")
    return "\n".join(lines)
