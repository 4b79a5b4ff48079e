"""Frozen weights of some blocks wait in the host's memory and come to the device for their turn, forward and backward.

    stream(transformer, 45, device)             # a 20B transformer in bf16: 41 GB become 12

While a block computes, the next one that waits is on its way, so that a block costs time only where its copy takes
longer than what is computed in between; blocks that wait are spread evenly for that. What is trained stays on the
device. Weights come as the same bits, and so do losses and gradients.

In training blocks have to be computed again in the backward (`train.recompute`): autograd keeps what a product needs of
its weight from the forward to the backward, and so all blocks would stay.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.errors import BadInput

PIECE = 2**30  # bytes
ALIVE = 3  # blocks on the device at once: one that ends, one that computes, one on its way


class Streamed:
    """Blocks that wait, by their place among those that do."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self._weights = [list(_frozen(block)) for block in blocks]
        self._host: list[list[Tensor]] = []
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._there: dict[int, Any] = {}
        self._left: deque[Any] = deque()
        locked = _Locked(device)
        for place, block in enumerate(blocks):
            self._host.append([locked.copy(weight.data) for weight in self._weights[place]])
            self._leave(place)
            block.register_forward_pre_hook(partial(self._before, place), with_kwargs=True)
            block.register_forward_hook(partial(self._behind, place))

    def _before(self, place: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        if _in_backward():
            self._turn(place, place - 1)
        elif place + 1 == len(self._weights) and not torch.is_grad_enabled():
            self._turn(place, 0)  # another forward follows, such as a drawing's next step
        else:
            self._turn(place, place + 1)

    def _behind(self, place: int, module: nn.Module, args: Any, made: Any) -> None:
        """The block's backward begins with the gradients of what it made."""
        if not _in_backward():
            for tensor in made if isinstance(made, tuple) else (made,):
                if tensor.requires_grad:
                    tensor.register_hook(partial(self._asked_back, place))

    def _asked_back(self, place: int, gradient: Tensor) -> None:
        self._turn(place, place - 1)

    def _turn(self, place: int, following: int) -> None:
        """Bring a block's weights, send for those of the following one, and let go of all others."""
        for other in [at for at in self._there if at not in (place, following)]:
            self._leave(other)
        self._send_for(place)
        if (copied := self._there[place]) is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            for weight in self._weights[place]:
                weight.data.record_stream(computing)
        if 0 <= following < len(self._weights):
            self._send_for(following)

    def _send_for(self, place: int) -> None:
        if place in self._there:
            return
        while len(self._left) > 1:  # the host does not run ahead: the room of a block that left is used again
            self._left.popleft().synchronize()
        with torch.cuda.stream(self._copying):  # nothing without a GPU
            for weight, host in zip(self._weights[place], self._host[place], strict=True):
                weight.data = host.to(self.device, non_blocking=True, copy=True)
            self._there[place] = None if self._copying is None else self._copying.record_event()

    def _leave(self, place: int) -> None:
        for weight in self._weights[place]:
            weight.data = weight.data.new_empty(0)
        if self._there.pop(place, None) is not None:
            self._left.append(torch.cuda.current_stream(self.device).record_event())


def stream(transformer: Any, count: int, device: torch.device) -> None:
    """Let `count` of a transformer's blocks wait, if any. Raises BadInput for what cannot wait."""
    if blocks := waiting_blocks(transformer, count):
        Streamed(blocks, device)


def waiting_blocks(transformer: Any, count: int) -> list[Any]:
    """The blocks that wait, spread evenly, the last one among them. Raises BadInput for more than there are, and where
    nothing in them is frozen."""
    blocks = transformer.transformer_blocks
    if count > len(blocks):
        raise BadInput(f"speed.offload_blocks: there are {len(blocks)} blocks, and {count} cannot wait; ask for fewer.")
    found = [blocks[(number + 1) * len(blocks) // count - 1] for number in range(count)]
    if found and not any(next(_frozen(block), None) is not None for block in found):
        raise BadInput(
            "speed.offload_blocks: nothing in these blocks is frozen, and what is trained stays on the device; "
            "train adapters, or set it to 0."
        )
    return found


def _frozen(block: nn.Module) -> Iterator[nn.Parameter]:
    return (weight for weight in block.parameters() if not weight.requires_grad)


class _Locked:
    """The host's memory that copies to a device need nobody to wait for. It is taken in pieces of 1 GiB, since torch
    rounds each one up to a power of two: half as much again for weights one by one."""

    def __init__(self, device: torch.device) -> None:
        self._lock = device.type == "cuda"
        self._rest = torch.empty(0, dtype=torch.uint8)

    def copy(self, weight: Tensor) -> Tensor:
        if not self._lock:
            return weight
        size = -(-weight.nbytes // 64) * 64  # every weight begins where all types may
        if size > len(self._rest):
            self._rest = torch.empty(max(PIECE, size), dtype=torch.uint8, pin_memory=True)
        place, self._rest = self._rest[: weight.nbytes], self._rest[size:]
        return place.view(weight.dtype).view(weight.shape).copy_(weight)


def _in_backward() -> bool:
    """A block is computed again."""
    return torch._C._current_graph_task_id() != -1
