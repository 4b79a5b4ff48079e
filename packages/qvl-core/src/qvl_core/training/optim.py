"""AdamW with the gradient's scale, clipping and skipping folded into one fused update that never waits for the device.

The fused kernel divides each gradient by `grad_scale` and leaves weights, averages and step counts alone where
`found_inf` is 1. Clipping is thus a division by norm / clip, and a step with a non-finite gradient is skipped on the
device.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from qvl_core.errors import QVLError
from qvl_core.recipe.blocks import Optim
from qvl_core.training.parts import ParameterGroup

STATE = ("exp_avg", "exp_avg_sq", "step")


def adamw(groups: Sequence[ParameterGroup], optim: Optim) -> torch.optim.AdamW:
    """One optimizer over all groups; `lr` is set before each step from the group's `peak`."""
    return torch.optim.AdamW(
        [
            {
                "params": list(group.parameters.values()),
                "peak": group.lr,
                "lr": group.lr,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


def fill_gradients(groups: Sequence[ParameterGroup]) -> None:
    """Give trained weights that a step did not use (no picture in it) a gradient of zero, which decays like any other.

    AdamW would skip them without, in one process only: several always use all weights, or they could not exchange them.
    """
    for group in groups:
        for parameter in group.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def gradient_norm(groups: Sequence[ParameterGroup]) -> Tensor:
    """Norm of all gradients, over all processes too. A scalar on the device."""
    gradients = [p.grad for group in groups for p in group.parameters.values() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def update(optimizer: torch.optim.AdamW, norm: Tensor, clip: float | None, scale: Tensor, finite: Tensor) -> None:
    """Apply the gradients, which are `scale` times too large and of unscaled norm `norm`, unless `finite` is false."""
    factor = torch.ones_like(norm) if clip is None else torch.clamp(norm / clip, min=1.0)
    setattr(optimizer, "grad_scale", scale * torch.where(finite, factor, 1.0))  # noqa: B010 - attributes torch reads
    setattr(optimizer, "found_inf", (~finite).float())  # noqa: B010
    optimizer.step()


def state_tensors(optimizer: torch.optim.AdamW, groups: Sequence[ParameterGroup]) -> Iterator[tuple[str, Tensor]]:
    """AdamW's state as `<parameter>/<key>`, gathered and on the CPU; drawn in the same order on every process."""
    for group in groups:
        for name, parameter in group.parameters.items():
            state = optimizer.state.get(parameter, {})
            for key in STATE:
                if key in state:
                    yield f"{name}/{key}", whole(state[key])


def load_state(optimizer: torch.optim.AdamW, groups: Sequence[ParameterGroup], saved: dict[str, Tensor]) -> None:
    """Put AdamW's state back. A parameter that had no gradient yet has none; a half one is an error."""
    for group in groups:
        for name, parameter in group.parameters.items():
            state: dict[str, Any] = {}
            for key in STATE:
                if (tensor := saved.pop(f"{name}/{key}", None)) is not None:
                    state[key] = tensor.to(parameter.device, copy=True) if key == "step" else like(tensor, parameter)
            if len(state) not in (0, len(STATE)):
                raise QVLError(f"the checkpoint holds only {sorted(state)} of the optimizer's state of {name}.")
            if state:
                optimizer.state[parameter] = state
    if saved:
        raise QVLError(f"the checkpoint holds optimizer state of unknown parameters: {', '.join(sorted(saved)[:3])}.")


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU; under FSDP gathered from all processes (a collective call)."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The full CPU tensor with the device, type and sharding of `parameter`."""
    tensor = tensor.to(parameter.device, parameter.dtype, copy=True)  # a loaded tensor may lie in its file's memory map
    if isinstance(parameter, DTensor):  # each process has the whole and takes its part
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor
