"""AdamW with the gradient's scale, clipping and skipping folded into one fused update that never waits for the device.

The fused kernel divides each gradient by `grad_scale` and leaves weights, averages and step counts alone where
`found_inf` is 1. Clipping is thus a division by norm / clip, and a step with a non-finite gradient is skipped on the
device. Without it (`speed.fused_optimizer: false`) gradients are divided by hand, and the host decides.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qvl_core.errors import QVLError
from qvl_core.recipe.blocks import Recipe
from qvl_core.training import adamw_8bit
from qvl_core.training.parts import ParameterGroup
from qvl_core.training.sharding import like, whole

STATE = ("exp_avg", "exp_avg_sq", "step")


class Optimizer:
    """One optimizer over all groups."""

    def __init__(self, groups: Sequence[ParameterGroup], recipe: Recipe) -> None:
        self.groups = groups
        self._packed = recipe.optim.name == "adamw_8bit"
        self._fused = recipe.speed.fused_optimizer
        given = [
            {"params": list(group.parameters.values()), "lr": group.lr, "weight_decay": group.weight_decay}
            for group in groups
        ]
        make = adamw_8bit.AdamW8bit if self._packed else torch.optim.AdamW
        kernel = True if self._fused else None  # None: torch's choice for the device, foreach or a plain loop
        self._torch: torch.optim.Optimizer = make(given, betas=recipe.optim.betas, eps=recipe.optim.eps, fused=kernel)

    def update(self, rate: float, clip: float | None, scale: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the gradients, which are `scale` times too large, if they and the loss are finite; and drop them.

        rate   factor of each group's peak learning rate

        Gives the true norm of the gradients and whether they were applied, on the device.
        """
        norm = self._gradient_norm() / scale
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        for group, own in zip(self.groups, self._torch.param_groups, strict=True):
            own["lr"] = group.lr * rate
        factor = torch.ones_like(norm) if clip is None else torch.clamp(norm / clip, min=1.0)
        divisor = scale * torch.where(finite, factor, 1.0)
        if self._fused:
            setattr(self._torch, "grad_scale", divisor)  # noqa: B010 - attributes torch reads
            setattr(self._torch, "found_inf", (~finite).float())  # noqa: B010
            self._torch.step()
        elif finite:  # waits for the device
            for gradient in (p.grad for group in self.groups for p in group.parameters.values()):
                assert gradient is not None
                gradient.div_(divisor)
            self._torch.step()
        self._torch.zero_grad(set_to_none=True)
        return norm, finite

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """AdamW's state as `<parameter>/<key>`, gathered; drawn in the same order on every process."""
        for name, parameter in self._parameters():
            if state := self._torch.state.get(parameter):
                entries = (
                    adamw_8bit.whole_state(state, parameter)
                    if self._packed
                    else {key: whole(state[key]) for key in STATE}
                )
                yield from ((f"{name}/{key}", tensor) for key, tensor in entries.items())

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Put AdamW's state back. A parameter that had no gradient yet has none; a half one is an error."""
        own = dict(self._parameters())
        for name, state in by_parameter(saved, own).items():
            self._torch.state[own[name]] = self._own(state, own[name])

    def _own(self, saved: Mapping[str, Tensor], parameter: nn.Parameter) -> dict[str, Tensor]:
        if self._packed:
            return adamw_8bit.own_state(saved, parameter)
        saved = adamw_8bit.in_fp32(saved)
        return {
            key: saved[key].to(parameter.device, copy=True) if key == "step" else like(saved[key], parameter)
            for key in STATE
        }

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for group in self.groups for name, p in group.parameters.items())

    def _gradient_norm(self) -> Tensor:
        """Norm of all gradients, over all processes too. A scalar on the device."""
        self._fill_gradients()
        gradients = [p.grad for group in self.groups for p in group.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return norm.to(gradients[0].device)

    def _fill_gradients(self) -> None:
        """Give trained weights that a step did not use (no picture in it) a gradient of zero, which decays like any
        other.

        AdamW would skip them without, in one process only: several always use all weights, or they could not exchange
        them.
        """
        for _, parameter in self._parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def by_parameter(saved: Mapping[str, Tensor], known: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state of each parameter. Raises QVLError for a half one, and for one of another parameter."""
    given: dict[str, dict[str, Tensor]] = {}
    for path, tensor in saved.items():
        name, _, key = path.rpartition("/")
        given.setdefault(name, {})[key] = tensor
    if unknown := sorted(given.keys() - set(known)):
        raise QVLError(f"the checkpoint holds optimizer state of unknown parameters: {', '.join(unknown[:3])}.")
    for name, state in given.items():
        if not state.keys() >= set(STATE):
            raise QVLError(f"the checkpoint holds only {sorted(state)} of the optimizer's state of {name}.")
    return given
