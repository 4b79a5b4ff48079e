"""Steps from noise to latents: Euler is its plain loop, both samplers end where a flow that is known exactly does."""

import itertools

import pytest
import torch
from torch import Tensor

from qvl_core.training.seeds import first_noise
from qvl_metaquery.denoise import denoise, scheduler
from qvl_metaquery.sampling import Name

SHAPE = (2, 3, 3)
MEAN, SPREAD = 0.7, 0.4  # of the data, a normal distribution
NOISE = first_noise(SHAPE, range(4)).double()
NOTHING = torch.zeros(1, 4, 1, 1)


def velocity(latents: Tensor, levels: Tensor, conditions: Tensor) -> Tensor:
    """The exact direction of normal data; (latents - mean) / deviation stays as it is along the way."""
    s = levels.view(-1, 1, 1, 1).to(latents.dtype)
    variance = (1 - s) ** 2 * SPREAD**2 + s**2
    return (s - (1 - s) * SPREAD**2) / variance * (latents - (1 - s) * MEAN) - MEAN


def last(name: Name, steps: int, shift: float = 1.0) -> Tensor:
    *_, latents = denoise(velocity, NOTHING, NOISE, scheduler(name, shift), steps, 1.0)
    return latents


def error(name: Name, steps: int, shift: float = 1.0) -> float:
    return float((last(name, steps, shift) - (MEAN + SPREAD * NOISE)).abs().max())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_plain_loop(shift: float) -> None:
    sampler = scheduler("euler", shift)
    found = list(denoise(velocity, NOTHING, NOISE, sampler, 7, 1.0))
    latents = NOISE
    for (level, following), after in zip(itertools.pairwise(sampler.sigmas), found, strict=True):
        latents = latents + (following - level) * velocity(latents, level.expand(4), NOTHING[0])
        assert (latents - after).abs().max() < 1e-5
    assert sampler.sigmas[0] == 1
    assert sampler.sigmas[-1] == 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["euler", "dpm"])
def test_more_steps_come_closer_to_the_exact_end(name: Name, shift: float) -> None:
    few, more, most = (error(name, steps, shift) for steps in (5, 20, 80))
    assert few / 2 > more > 2 * most
    assert most < 0.06


def test_times_that_are_alike_are_no_end() -> None:
    """DPM-Solver's times are integers: at a thousand steps some are alike."""
    *_, fine = denoise(velocity, NOTHING, NOISE, scheduler("dpm", 1.0), 1000, 1.0)
    *_, coarse = denoise(velocity, NOTHING, NOISE, scheduler("dpm", 1.0), 100, 1.0)
    assert (fine - coarse).abs().max() < 0.06


def test_second_order_is_closer_than_first() -> None:
    assert error("dpm", 20) < error("euler", 20) / 3


def test_a_model_is_asked_at_the_very_levels_between_which_the_sampler_steps() -> None:
    for name in ("euler", "dpm"):
        asked = []

        def noted(latents: Tensor, levels: Tensor, conditions: Tensor, asked: list[Tensor] = asked) -> Tensor:
            asked.append(levels[0])
            return velocity(latents, levels, conditions)

        sampler = scheduler(name, 3.0)
        list(denoise(noted, NOTHING, NOISE, sampler, 9, 1.0))
        assert (torch.stack(asked) - sampler.sigmas[:-1]).abs().max() < 1e-6


def test_branches_are_rows_of_one_forward_in_their_order() -> None:
    """A model that says what its condition holds: the steps add up to the guided sum."""
    conditions = torch.tensor([1.0, 10.0, 100.0])[:, None, None, None].expand(3, 4, 1, 1)

    def told(latents: Tensor, levels: Tensor, conditions: Tensor) -> Tensor:
        return torch.zeros_like(latents) + conditions[:, :, :, None]

    *_, latents = denoise(told, conditions, NOISE.float(), scheduler("euler", 1.0), 3, 2.0, 1.5)
    wanted = 1 + 1.5 * (10 - 1) + 2 * (100 - 10)
    torch.testing.assert_close(latents, NOISE.float() - wanted)


def test_noise_is_a_seeds_own() -> None:
    together = first_noise(SHAPE, [3, 5, 3])
    assert torch.equal(together[1:2], first_noise(SHAPE, [5]))
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
