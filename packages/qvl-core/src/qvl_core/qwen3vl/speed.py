"""The switches of a recipe's `speed` block and `train.recompute` that change how a model computes, never what."""

from collections.abc import Sequence
from typing import Any

from qvl_core.qwen3vl.compiling import compile_layers
from qvl_core.qwen3vl.frozen import without_gradients
from qvl_core.qwen3vl.patches import linear_patches
from qvl_core.qwen3vl.recompute import Part, recompute_layers
from qvl_core.recipe.blocks import Speed


def speed_up(model: Any, speed: Speed, recompute: bool | Sequence[Part] = False) -> None:
    """Set up a loaded and tuned model, in place. Names, shapes and values of its parameters stay as they are."""
    if speed.linear_patches:
        linear_patches(model)
    if speed.compile:
        compile_layers(model)
    recompute_layers(model, recompute)
    if speed.frozen_features:
        without_gradients(model)
