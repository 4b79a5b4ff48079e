"""Frozen weights of some blocks wait in the host's memory and come to the device for their turn, forward and backward.

    streamed = stream(transformer.transformer_blocks, 45, device)       # a 20B transformer in bf16: 41 GB become 11

While a block computes, the next one that waits is on its way, so that a block costs time only where its copy takes
longer than what is computed in between; blocks that wait are spread evenly for that. What is trained stays on the
device. Weights come as the same bits, and so do losses and gradients.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.errors import BadInput


class Streamed:
    """Blocks that wait, by their place among those that do. One computes, and one is on its way."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self._weights = [list(_frozen(block)) for block in blocks]
        if not any(self._weights):
            raise BadInput(
                "speed.offload_blocks: nothing in these blocks is frozen, and what is trained stays on the device; "
                "train adapters, or set it to 0."
            )
        self._host = [[_pinned(weight.data, device) for weight in weights] for weights in self._weights]
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._there: dict[int, Any] = {}
        for place, block in enumerate(blocks):
            self._leave(place)
            block.register_forward_pre_hook(partial(self._before, place), with_kwargs=True)
            block.register_forward_hook(partial(self._behind, place))

    @property
    def there(self) -> list[int]:
        """Blocks whose weights are on the device, or on their way."""
        return sorted(self._there)

    def _before(self, place: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._turn(place, -1 if _in_backward() else 1)

    def _behind(self, place: int, module: nn.Module, args: Any, made: Any) -> None:
        """The block's backward begins with the gradients of what it made."""
        if not _in_backward():
            for tensor in made if isinstance(made, tuple) else (made,):
                if tensor.requires_grad:
                    tensor.register_hook(partial(self._asked_back, place))

    def _asked_back(self, place: int, gradient: Tensor) -> None:
        self._turn(place, -1)

    def _turn(self, place: int, onward: int) -> None:
        """Bring a block's weights, send for those of the next one, and let go of all others."""
        following = place + onward
        for other in [at for at in self._there if at not in (place, following)]:
            self._leave(other)
        self._send_for(place)
        if (copied := self._there[place]) is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)
            for weight in self._weights[place]:
                weight.data.record_stream(torch.cuda.current_stream(self.device))
        if 0 <= following < len(self._weights):
            self._send_for(following)

    def _send_for(self, place: int) -> None:
        if place in self._there:
            return
        with torch.cuda.stream(self._copying):  # nothing without a GPU
            for weight, host in zip(self._weights[place], self._host[place], strict=True):
                weight.data = host.to(self.device, non_blocking=True, copy=True)
            self._there[place] = None if self._copying is None else self._copying.record_event()

    def _leave(self, place: int) -> None:
        for weight in self._weights[place]:
            weight.data = weight.data.new_empty(0)
        self._there.pop(place, None)


def stream(blocks: Sequence[nn.Module], count: int, device: torch.device) -> Streamed | None:
    """Let `count` of a transformer's blocks wait, if any. Raises BadInput for more than there are."""
    if count > len(blocks):
        raise BadInput(f"speed.offload_blocks: there are {len(blocks)} blocks, and {count} cannot wait; ask for fewer.")
    return Streamed([blocks[place] for place in waiting(count, len(blocks))], device) if count else None


def waiting(count: int, blocks: int) -> list[int]:
    """Which of so many blocks wait: spread evenly, the last one among them."""
    return [(number + 1) * blocks // count - 1 for number in range(count)]


def _frozen(block: nn.Module) -> Iterator[nn.Parameter]:
    return (weight for weight in block.parameters() if not weight.requires_grad)


def _pinned(weight: Tensor, device: torch.device) -> Tensor:
    host = weight.detach().cpu()
    return host.pin_memory() if device.type == "cuda" else host


def _in_backward() -> bool:
    """A block is computed again."""
    return torch._C._current_graph_task_id() != -1
