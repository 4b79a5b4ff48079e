"""An exponential average of the trained weights (`optim.ema`), which evaluations and final/ use.

An applied update that t others went before makes it d average + (1 - d) weights, d = min(decay, (1 + t) / (10 + t)):
the first ones count more (as in TensorFlow's ExponentialMovingAverage), so that a short run's average is not made of
where it started.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qvl_core.training.sharding import gathered, like, local


class Average:
    """Kept in fp32 beside the weights, on their device and sharded as they are."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, device: torch.device) -> None:
        self.decay = decay
        self.parameters = parameters
        self.updates = torch.zeros((), device=device)
        self._parts = {name: local(parameter).detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Take in the present weights if `applied` () is true, without waiting for it."""
        decay = ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)
        self.updates += applied
        share = torch.where(applied, 1 - decay, 0.0)
        for name, parameter in self.parameters.items():
            self._parts[name].lerp_(local(parameter).detach(), share)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The average by name, gathered; drawn in the same order on every process."""
        return ((name, gathered(self._parts[name], parameter)) for name, parameter in self.parameters.items())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        for name, parameter in self.parameters.items():
            self._parts[name].copy_(local(like(tensors[name], parameter)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            weights, average = local(parameter), self._parts[name]
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)
