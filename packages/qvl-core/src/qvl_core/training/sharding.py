"""Tensors that several processes share: this process's part, the whole, and from the whole to the parts."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU; under FSDP gathered from all processes (a collective call)."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def gathered(part: Tensor, parameter: Tensor) -> Tensor:
    """The full tensor on the CPU from each process's part, which is shared like `parameter` (a collective call)."""
    if not isinstance(parameter, DTensor):
        return part.detach().cpu()
    mesh, placements = parameter.device_mesh, parameter.placements
    return whole(DTensor.from_local(part, mesh, placements, shape=parameter.shape, stride=parameter.stride()))


def like(tensor: Tensor, parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The full CPU tensor with the device, type (or `dtype`) and sharding of `parameter`."""
    # A copy: a loaded tensor may lie in its file's memory map.
    tensor = tensor.to(parameter.device, dtype or parameter.dtype, copy=True)
    if isinstance(parameter, DTensor):  # each process has the whole and takes its part
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor
