"""Modules that take turns on a device which has no room for all of them: a text encoder of 17 GB, a transformer of 41.

with there(encoder, device):
    told = encoder(...)
with there(transformer, device):
    ...
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

ROOM = 4 * 2**30  # bytes for what is computed: a picture of 1024 x 1024 pixels with one source takes a third of it


@contextmanager
def there(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module on a device for a while. What it was copied from stays where it is, so nothing is copied back."""
    away = [tensor for tensor in _tensors(module) if tensor.device != device]
    homes = [tensor.data for tensor in away]
    try:
        for tensor in away:
            tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, home in zip(away, homes, strict=True):
            tensor.data = home


def fit(modules: Iterable[nn.Module], device: torch.device) -> bool:
    """Whether a device has room for all of them, and for what they compute."""
    if device.type != "cuda":
        return True
    missing = sum(t.nbytes for module in modules for t in _tensors(module) if t.device != device)
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for the next to come
    return missing == 0 or missing + ROOM <= free + kept


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
