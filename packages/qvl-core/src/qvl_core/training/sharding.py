"""Tensors that several processes share: this process's part, the whole, and from the whole to the parts.

FSDP's parameters are DTensors, ZeRO-3's carry their part as `ds_tensor`: padded, flat, of equal size everywhere.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, or all of it."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    part: Tensor = getattr(tensor, "ds_tensor", tensor)
    return part


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all processes (a collective call) if they share it."""
    return gathered(local(tensor), tensor)


def gathered(part: Tensor, parameter: Tensor) -> Tensor:
    """The full tensor from each process's part, which is shared like `parameter` (a collective call)."""
    part = part.detach()
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        shared = DTensor.from_local(part, mesh, placements, shape=parameter.shape, stride=parameter.stride())
        return shared.full_tensor()
    if hasattr(parameter, "ds_tensor"):
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part)
        shape = full_shape(parameter)
        return torch.cat(parts)[: shape.numel()].view(shape)
    return part


def like(tensor: Tensor, parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The full CPU tensor with the device, type (or `dtype`) and sharding of `parameter`; under ZeRO-3 the own part."""
    # A copy: a loaded tensor may lie in its file's memory map.
    tensor = tensor.to(parameter.device, dtype or parameter.dtype, copy=True)
    if isinstance(parameter, DTensor):  # each process has the whole and takes its part
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    if hasattr(parameter, "ds_tensor"):
        size, rank = local(parameter).numel(), dist.get_rank()
        flat = tensor.new_zeros(size * dist.get_world_size())
        flat[: tensor.numel()] = tensor.reshape(-1)
        return flat[rank * size : (rank + 1) * size]
    return tensor


def widen(trained: Iterable[nn.Parameter], device: torch.device) -> None:
    """Put weights on a device, in fp32 and in one order: small updates vanish in 16 bits, and a fused update walks
    through weight and averages alike."""
    for parameter in trained:
        parameter.data = parameter.data.to(device).float().contiguous()


def full_shape(parameter: Tensor) -> torch.Size:
    """Shape of the whole parameter."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
