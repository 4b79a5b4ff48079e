"""AdamW with the gradient's scale, clipping and skipping folded into one fused update that never waits for the device.

The fused kernel divides each gradient by `grad_scale` and leaves weights, averages and step counts alone where
`found_inf` is 1. Clipping is thus a division by norm / clip, and a step with a non-finite gradient is skipped on the
device. Without it (`speed.fused_optimizer: false`) gradients are divided by hand, and the host decides.
"""

from collections.abc import Iterator, Mapping, Sequence

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
        self._torch: torch.optim.Optimizer = make(
            given, betas=recipe.optim.betas, eps=recipe.optim.eps, fused=self._fused
        )

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients, over all processes too. A scalar on the device."""
        self._fill_gradients()
        gradients = [p.grad for group in self.groups for p in group.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, rate: float, norm: Tensor, clip: float | None, scale: Tensor, finite: Tensor) -> None:
        """Apply the gradients, unless `finite` is false, and drop them.

        rate   factor of each group's peak learning rate
        norm   of the gradients without `scale`, by which they are too large
        """
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

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """AdamW's state as `<parameter>/<key>`, gathered and on the CPU; drawn in the same order on every process."""
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
        given: dict[str, dict[str, Tensor]] = {}
        for path, tensor in saved.items():
            name, _, key = path.rpartition("/")
            given.setdefault(name, {})[key] = tensor
        for name, parameter in self._parameters():
            if state := given.pop(name, None):
                if not state.keys() >= set(STATE):
                    raise QVLError(f"the checkpoint holds only {sorted(state)} of the optimizer's state of {name}.")
                self._torch.state[parameter] = self._own(state, parameter)
        if given:
            raise QVLError(
                f"the checkpoint holds optimizer state of unknown parameters: {', '.join(sorted(given)[:3])}."
            )

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

    def _fill_gradients(self) -> None:
        """Give trained weights that a step did not use (no picture in it) a gradient of zero, which decays like any
        other.

        AdamW would skip them without, in one process only: several always use all weights, or they could not exchange
        them.
        """
        for _, parameter in self._parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
