"""Layers that keep only their input and compute the rest again in the backward pass, chosen by group.

A third more time for most of the memory (Chen et al. 2016, arXiv:1604.06174). The layers are transformers' own
checkpointing layers, so sharding, autocast and dropout are those of the library.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

from torch.utils.checkpoint import checkpoint

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.towers import encoder_learns

Part = Literal["llm", "vision"]


def recomputed(recompute: bool | Sequence[Part]) -> tuple[Part, ...]:
    """The groups that `train.recompute` names: all, none, or those of its list."""
    if isinstance(recompute, bool):
        return get_args(Part) if recompute else ()
    return tuple(recompute)


def recompute_layers(model: Any, recompute: bool | Sequence[Part]) -> None:
    """Set up the groups' layers, in place. A tower without gradients keeps nothing and is left as it is.

    Raises BadInput for a swapped tower that is named and has no layers of this kind.
    """
    parts = recomputed(recompute)
    if "llm" in parts:
        _checkpoint(model.model.language_model)
    if "vision" in parts and encoder_learns(model):
        try:
            _checkpoint(model.model.visual)
        except ValueError:
            if recompute is not True:
                raise BadInput(
                    "train.recompute: this vision tower has no layers that can be recomputed; remove vision."
                ) from None


def _checkpoint(part: Any) -> None:
    """What `activation_checkpointing_enable` does, without giving gradients to the embeddings: reentrant checkpoints
    need them, and layers before the trained ones would then keep their inputs for nothing."""
    part._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))
