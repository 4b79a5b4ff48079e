"""Layers that keep only their input and compute the rest again in the backward pass, chosen by group.

A third more time for most of the memory (Chen et al. 2016, arXiv:1604.06174). The layers are transformers' own
checkpointing layers, so sharding, autocast and dropout are those of the library.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from qvl_core.qwen3vl.towers import encoder_learns

Part = Literal["llm", "vision"]


def recomputed(recompute: bool | Sequence[Part]) -> tuple[Part, ...]:
    """The groups that `train.recompute` names: all, none, or those of its list."""
    if isinstance(recompute, bool):
        return get_args(Part) if recompute else ()
    return tuple(recompute)


def recompute_layers(model: Any, recompute: bool | Sequence[Part]) -> None:
    """Set up the groups' layers, in place. A tower without gradients keeps nothing and is left as it is."""
    parts = recomputed(recompute)
    if "llm" in parts:
        model.model.language_model.activation_checkpointing_enable({"use_reentrant": False})
    if "vision" in parts and encoder_learns(model):
        model.model.visual.activation_checkpointing_enable({"use_reentrant": False})
