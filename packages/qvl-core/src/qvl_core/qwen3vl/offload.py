"""Activations wait for the backward pass in the host's pinned memory instead of on the device.

    with offloaded(device):
        loss = forward(batch)
    loss.backward()

Every tensor that autograd keeps, except weights and small ones, is copied to the host beside the computation and copied
back when the backward asks for it. Of recomputed layers autograd keeps the input alone, so that the two together leave
one layer's activations on the device. On a CPU there is nothing to be gained and nothing is done.
"""

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

MINIMUM = 2**20  # bytes; below, the copy's overhead is more than it saves
RECENT = 8  # tensors in which a second keeping of the same one is looked for


def offloaded(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, what is kept for the backward lies on the host."""
    return nullcontext() if device.type == "cpu" else Offload()


class Offload(saved_tensors_hooks):
    """The hooks. A tensor that several operations keep (the input of q, k and v) is copied once."""

    def __init__(self) -> None:
        # Tensors in here are alive, so that an equal address means the same tensor. One that is changed in place is
        # another, so what it was is kept beside it.
        self._recent: deque[tuple[Tensor, Any, _OnHost]] = deque(maxlen=RECENT)
        super().__init__(self._keep, _give_back)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._recent.clear()  # autograd keeps the hooks until the backward is done

    def _keep(self, tensor: Tensor) -> "Tensor | _OnHost":
        if tensor.nbytes < MINIMUM or _is_weight(tensor):
            return tensor
        identity = _identity(tensor)
        for _, known, kept in self._recent:
            if known == identity:
                return kept
        kept = _OnHost(tensor)
        self._recent.append((tensor.detach(), identity, kept))
        return kept


class _OnHost:
    """A tensor's copy on the host, and the way back."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        self.stream = _copying(self.device)
        self.returned: ref[Tensor] | None = None
        self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        if self.stream is None:
            self.host.copy_(tensor)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)  # its memory is free again when the copy is done

    def back(self) -> Tensor:
        tensor = self.returned() if self.returned is not None else None
        if tensor is None:
            if self.stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(self.stream)
            tensor = self.host.to(self.device, non_blocking=True, copy=True)
            self.returned = ref(tensor)
        return tensor


def _give_back(kept: "Tensor | _OnHost") -> Tensor:
    return kept.back() if isinstance(kept, _OnHost) else kept


_streams: dict[torch.device, Any] = {}


def _copying(device: torch.device) -> Any:
    """The stream that copies to the host, one for each GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _is_weight(tensor: Tensor) -> bool:
    """A parameter, a view of one (its transpose), or autocast's copy of one."""
    whole = tensor if tensor._base is None else tensor._base
    if whole.grad_fn is not None and whole.grad_fn.name() == "ToCopyBackward0":
        whole = getattr(whole.grad_fn.next_functions[0][0], "variable", whole)
    return isinstance(whole, nn.Parameter)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
