"""A tower that is not trained runs without gradients, and its encoder does so where only the mergers learn.

Autograd keeps nothing of frozen layers on frozen inputs anyway; without it they are not recorded at all, and what is
wrapped around them (recompute, offloading) has nothing to do.
"""

from typing import Any

import torch
from torch import nn

from qvl_core.qwen3vl.towers import encoder_learns, tower_learns


def without_gradients(model: Any) -> None:
    """Run what is frozen of the tower without gradients, in place; parameters and values stay as they are."""
    visual = model.model.visual
    if not tower_learns(model):
        _freeze(visual)
    elif not encoder_learns(model):
        for name, part in visual.named_children():
            if name not in ("merger", "deepstack_merger_list"):
                for module in part if isinstance(part, nn.ModuleList) else [part]:
                    _freeze(module)


def _freeze(module: nn.Module) -> None:
    module.forward = torch.no_grad()(module.forward)
