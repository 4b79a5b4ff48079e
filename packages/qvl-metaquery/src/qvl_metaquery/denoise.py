"""From noise to latents: the steps of a sampler over guided predictions, with diffusers' schedulers.

Shapes: B pictures of C x H x W, K branches of guidance.
"""

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from qvl_metaquery.flow import LEVELS
from qvl_metaquery.guidance import guided
from qvl_metaquery.sampling import Name


def scheduler(name: Name, shift: float) -> Any:
    """A sampler of flow models with this shift of noise levels."""
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=LEVELS, shift=shift)
    return DPMSolverMultistepScheduler(
        num_train_timesteps=LEVELS, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


@torch.no_grad()
def denoise(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    conditions: Tensor,
    noise: Tensor,
    sampler: Any,
    steps: int,
    guidance: float,
    image_guidance: float = 1.0,
) -> Iterator[Tensor]:
    """Latents (B, C, H, W) after each step.

    velocity    of latents (n, C, H, W), levels (n,) and conditions (n, N, D), as `MetaQuery.velocity`
    conditions  (K, B, N, D) in the order of `guidance.branches`
    """
    branches, number = conditions.shape[:2]
    _set_levels(sampler, steps, noise.device)
    sampler.set_begin_index(0)  # else it is looked for by a time, of which DPM-Solver may have two that are alike
    latents = noise
    for time, level in zip(sampler.timesteps, sampler.sigmas, strict=False):
        levels = level.to(noise.device, torch.float32).expand(branches * number)
        repeated = latents.repeat(branches, 1, 1, 1)
        predictions = velocity(repeated, levels, conditions.flatten(0, 1)).float()
        direction = guided(predictions.unflatten(0, (branches, number)), guidance, image_guidance)
        latents = sampler.step(direction, time, latents, return_dict=False)[0]
        yield latents


def _set_levels(sampler: Any, steps: int, device: torch.device) -> None:
    """Evenly spaced noise levels: Euler's from 1 to 1 / steps before the shift (its own would end in a step from 0.001
    to nothing), DPM-Solver's as it sets them."""
    if "sigmas" in signature(sampler.set_timesteps).parameters:
        sampler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], device=device)
    else:
        sampler.set_timesteps(steps, device=device)
