"""The noise on a target and its level: functions of (seed, step, slot) alone.

A picture's latent x and noise e are joined by a straight line, z = (1 - s) x + s e. The level s is one of 1,000, moved
towards noise the more tokens the target has (Esser et al. 2024, arXiv:2403.03206), as the checkpoint's scheduler does
it when a picture is drawn: `Shift` equals diffusers' FlowMatchEulerDiscreteScheduler.

The levels of a step are spread evenly: each of its n slots has the n-th part of [0, 1) that a shuffle gives it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput
from qvl_core.training.seeds import mix
from qvl_data.order import order
from qvl_edit.recipe import Times

LEVELS = 1000
STEPS = 40  # from noise to picture, as the pipelines have it
MODE_SCALE = 1.29


@dataclass(frozen=True)
class Shift:
    """How levels are moved; the defaults are Qwen-Image's.

    low, high    exponents at `low_tokens` and `high_tokens`; in between, and beyond, on the line through them
    terminal     the lowest level, to which the others are stretched; None: where the shift leaves it
    own          levels between which pictures are drawn, before they are moved, if no number of steps is asked for;
                 none: STEPS evenly spread ones
    """

    low: float = 0.5
    high: float = 0.9
    low_tokens: int = 256
    high_tokens: int = 8192
    terminal: float | None = 0.02
    own: tuple[float, ...] = ()

    @classmethod
    def of(cls, scheduler: Mapping[str, Any], own: Sequence[float] | None = None) -> "Shift":
        """The one of a checkpoint's scheduler/scheduler_config.json, with the levels that its model_index.json may have
        (`sample_sigmas`). Raises BadInput for one that is not known."""
        kinds = [name for name in ("karras", "exponential", "beta") if scheduler.get(f"use_{name}_sigmas")]
        if kinds or scheduler.get("time_shift_type", "exponential") != "exponential":
            raise BadInput(
                "scheduler/scheduler_config.json: levels of noise are not shifted exponentially there, as Qwen-Image "
                "has it; take another checkpoint."
            )
        terminal = scheduler.get("shift_terminal") or None
        if not scheduler.get("use_dynamic_shifting", False):
            return replace(cls.constant(scheduler.get("shift", 1.0), terminal), own=tuple(own or ()))
        return cls(
            scheduler.get("base_shift", 0.5),
            scheduler.get("max_shift", 1.15),
            scheduler.get("base_image_seq_len", 256),
            scheduler.get("max_image_seq_len", 4096),
            terminal,
            tuple(own or ()),
        )

    @classmethod
    def constant(cls, factor: float, terminal: float | None = None) -> "Shift":
        """The same for every number of tokens, as models of few steps have it (Qwen-Image-Lightning: 3)."""
        return cls(math.log(factor), math.log(factor), terminal=terminal)

    def __call__(self, level: float, tokens: int, lowest: float = 1 / LEVELS) -> float:
        """A level moved for a target of so many tokens; `lowest` of all levels ends at `terminal`."""
        slope = (self.high - self.low) / (self.high_tokens - self.low_tokens)
        factor = math.exp(self.low + slope * (tokens - self.low_tokens))
        moved = _moved(level, factor)
        if self.terminal is None or level == 1:
            return moved
        return 1 - (1 - moved) * (1 - self.terminal) / (1 - _moved(lowest, factor))

    def grid(self, steps: int | None, tokens: int) -> list[float]:
        """The levels between which a picture of so many tokens is drawn, from 1 down to 0: (steps + 1,)."""
        count = steps or STEPS
        levels = [1 - step / count for step in range(count)] if steps or not self.own else self.own
        return [*(self(level, tokens, lowest=levels[-1]) for level in levels), 0.0]


def level_of(seed: int, step: int, slot: int, slots: int, times: Times = "uniform") -> float:
    """The level of a slot, before it is shifted: one of 1/LEVELS, 2/LEVELS ... 1."""
    jitter = np.random.default_rng(mix(seed, "level", step, slot)).random()
    return level_at((order(mix(seed, "levels", step), slot, slots) + float(jitter)) / slots, times)


def level_at(draw: float, times: Times) -> float:
    """The level of a number drawn evenly from [0, 1)."""
    return 1 - min(int(LEVELS * density(draw, times)), LEVELS - 1) / LEVELS


def density(draw: float, times: Times) -> float:
    """A number drawn evenly from [0, 1), made one of another density there (Esser et al. 2024, section 3.1).

    logit_normal  mostly the middle; its mean 0 and deviation 1 are before the logistic function
    mode          somewhat more of the middle, but never few of any
    """
    if times == "logit_normal":
        return 1 / (1 + math.exp(-NormalDist().inv_cdf(min(max(draw, 1e-6), 1 - 1e-6))))
    if times == "mode":
        return min(max(1 - draw - MODE_SCALE * (math.cos(math.pi * draw / 2) ** 2 - 1 + draw), 0.0), 1.0)
    return draw


def noise_of(seed: int, step: int, slot: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of a slot, of the shape of its target's tokens."""
    rng = np.random.default_rng(mix(seed, "noise", step, slot))
    return rng.standard_normal(shape, dtype=np.float32)


def _moved(level: float, factor: float) -> float:
    return factor / (factor + (1 / level - 1))
