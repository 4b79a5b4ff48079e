"""From noise to latents: Euler's steps along the predicted direction, and guidance. Pure functions.

    for latents in denoise(velocity, noise, shift.grid(steps, tokens)):
        ...

Shapes: B pictures of N tokens of F features.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor


@torch.no_grad()
def denoise(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, levels: Sequence[float]) -> Iterator[Tensor]:
    """Latents (B, N, F) after each step, in noise's type, which should be fp32 whatever the transformer computes in.

    velocity  of latents (B, N, F) and their level
    levels    (steps + 1,), from 1 down to 0
    """
    latents = noise
    for level, following in pairwise(levels):
        latents = latents + (following - level) * velocity(latents, level).to(noise.dtype)
        yield latents


def guided(told: Tensor, untold: Tensor, guidance: float, rescaled: bool = True) -> Tensor:
    """(B, N, F): away from what the negative text says; `rescaled`: at each token as long as what the text says.

    u + g (c - u) of classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598), rescaled to the norm of c as
    diffusers' Qwen-Image pipelines do it, but for that of 2.1.
    """
    combined = untold + guidance * (told - untold)
    if not rescaled:
        return combined
    length: Tensor = told.norm(dim=-1, keepdim=True)  # (B, N, 1)
    return combined * (length / combined.norm(dim=-1, keepdim=True))
