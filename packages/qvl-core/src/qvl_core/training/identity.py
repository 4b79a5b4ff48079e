"""What must be equal for a checkpoint to be continued; not logging, cadence, micro-batch or processes."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from qvl_core.recipe.blocks import Recipe


def identity(
    recipe: Recipe,
    *,
    content: str,
    steps: int,
    precision: str,
    blocks: Collection[str] = (),
    without: Mapping[str, Collection[str]] = MappingProxyType({}),
    train: Collection[str] = (),
) -> dict[str, Any]:
    """The part of a recipe that decides what is learned.

    content    fingerprint of the training data
    steps      optimizer steps of the run
    precision  what `auto` has become
    blocks     a method's own blocks that decide as well
    without    keys of these blocks that decide nothing
    train      its own keys of the block `train`
    """
    left_out = {block: set(keys) for block, keys in without.items()}
    values = recipe.model_dump(mode="json", include={"tune", "optim", "schedule", "media", *blocks}, exclude=left_out)
    return values | {
        "model": recipe.model.model_dump(mode="json", exclude={"attention"}),
        "data": {
            "train": [source.model_dump(mode="json") for source in recipe.data.train],
            "media_root": recipe.data.media_root,
            "train_on": recipe.data.train_on,
            "content": content,
        },
        "batch": recipe.batch.model_dump(mode="json", exclude={"micro"}),
        "train": {
            "steps": steps,
            "seed": recipe.train.seed,
            "clip": recipe.train.clip,
            "precision": precision,
            "tf32": recipe.train.tf32,
            **recipe.train.model_dump(mode="json", include=set(train)),
        },
    }
