"""Randomness from (seed, step, slot) and nothing else: a resumed run draws what the uninterrupted one would have."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def mix(*parts: int | str) -> int:
    """A 63-bit seed from any integers and names; the same on every platform and version."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def reseed(*parts: int | str) -> None:
    """Seed torch's generators (CPU and accelerators) from `parts`."""
    torch.manual_seed(mix(*parts))


def first_noise(shape: tuple[int, ...], seeds: Sequence[int]) -> Tensor:
    """(B, *shape): the noise of each seed by itself, on the CPU: the same alone, in a batch, and on every device."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
