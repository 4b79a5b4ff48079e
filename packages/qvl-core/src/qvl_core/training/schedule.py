"""The learning rate as a pure function of the step."""

import math

from qvl_core.recipe.blocks import Schedule


def warmup_steps(schedule: Schedule, steps: int) -> int:
    """Steps of warm-up: `warmup` itself, or that part of all steps when it is below 1."""
    return round(schedule.warmup * steps if schedule.warmup < 1 else schedule.warmup)


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Factor of the peak learning rate for the update number `step` (0-based) of `steps`.

    Warm-up rises linearly and reaches 1 at its last step; linear and cosine then fall and would reach `min_factor` one
    step after the last, so that no step is wasted at a rate of zero.
    """
    warm = warmup_steps(schedule, steps)
    if step < warm:
        return (step + 1) / warm
    if schedule.name == "constant":
        return 1.0
    progress = (step - warm) / (steps - warm)
    fall = 1 - progress if schedule.name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.min_factor + (1 - schedule.min_factor) * fall
