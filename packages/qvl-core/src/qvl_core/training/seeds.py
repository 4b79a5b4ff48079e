"""Randomness from (seed, step, slot) and nothing else: a resumed run draws what the uninterrupted one would have."""

import hashlib

import torch


def mix(*parts: int | str) -> int:
    """A 63-bit seed from any integers and names; the same on every platform and version."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def reseed(*parts: int | str) -> None:
    """Seed torch's generators (CPU and accelerators) from `parts`."""
    torch.manual_seed(mix(*parts))
