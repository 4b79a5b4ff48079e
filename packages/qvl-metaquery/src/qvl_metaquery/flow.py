"""Flow matching (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003): pure functions.

A picture's latent x and noise e are joined by a straight line, z = (1 - s) x + s e, and the model learns its direction,
e - x. The noise level s is one of 1,000; a shift above 1 moves levels towards noise. Training and sampling have a shift
each: the published Sana recipe trains at 1 and samples at 3.

Shapes: B pictures of C x H x W.
"""

import math

import torch
from torch import Tensor

from qvl_metaquery.recipe import Times

LEVELS = 1000


def noise_level(draw: float, shift: float = 1.0, times: Times = "uniform") -> float:
    """The noise level, in (0, 1], of a number drawn evenly from [0, 1).

    times  uniform: all levels alike; logit_normal: mostly the middle ones (Esser et al. 2024, arXiv:2403.03206)
    """
    if times == "logit_normal":
        draw = 1 / (1 + math.exp(-_normal(draw)))
    level = 1 - min(int(LEVELS * draw), LEVELS - 1) / LEVELS
    return shifted(level, shift)


def shifted(level: float, shift: float) -> float:
    """A noise level moved towards 1 by a shift above 1."""
    return shift * level / (1 + (shift - 1) * level)


def between(latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """(B, C, H, W): latents with noise at `levels` (B,)."""
    s = levels.view(-1, 1, 1, 1).to(latents.dtype)
    return (1 - s) * latents + s * noise


def flow_loss(velocity: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """(B,) squared error of a predicted direction, mean over a picture's numbers, in fp32.

    velocity, latents, noise  (B, C, H, W)
    """
    wanted = noise.float() - latents.float()
    return (velocity.float() - wanted).square().mean((1, 2, 3))


def _normal(draw: float) -> float:
    """The standard normal's quantile."""
    return float(torch.special.ndtri(torch.tensor(min(max(draw, 1e-6), 1 - 1e-6), dtype=torch.float64)))
