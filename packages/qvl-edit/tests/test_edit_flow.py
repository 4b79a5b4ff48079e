"""Noise and its levels, latents as tokens, and the loss, against diffusers' own."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling

from qvl_core.errors import BadInput
from qvl_edit.flow import between, recovered, velocity_losses
from qvl_edit.packing import Grid
from qvl_edit.times import LEVELS, MODE_SCALE, Shift, Times, density, level_of, noise_of

# As Qwen-Image-Edit-2509 has it.
SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}
DENSITIES: list[Times] = ["uniform", "logit_normal", "mode"]


def grid(config: dict[str, Any], tokens: int) -> np.ndarray[Any, Any]:
    """diffusers' levels of 1,000 steps, as the pipelines ask for them."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    mu = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    mu = mu if config.get("use_dynamic_shifting") else None
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / LEVELS, LEVELS), mu=mu)
    return scheduler.sigmas[:-1].double().numpy()


@pytest.mark.parametrize("tokens", [1, 256, 1024, 4096, 8192, 12000])
@pytest.mark.parametrize(
    "config",
    [SCHEDULER, SCHEDULER | {"shift_terminal": None}, {"use_dynamic_shifting": True}, {}, {"shift": 3.0}],
    ids=["qwen", "no terminal", "defaults", "none", "constant"],
)
def test_levels_are_shifted_as_the_scheduler_does_it(config: dict[str, Any], tokens: int) -> None:
    shift = Shift.of(config)
    ours = [shift(1 - index / LEVELS, tokens) for index in range(LEVELS)]
    assert ours == pytest.approx(grid(config, tokens), abs=1e-6)


def test_the_defaults_are_those_of_qwen_image() -> None:
    assert Shift() == Shift.of(SCHEDULER)
    shift = Shift(terminal=None)  # s' / (1 - s') is exp(mu) times s / (1 - s)
    moved = [shift(0.5, tokens) for tokens in (1024, 4096)]
    assert [round(math.log(level / (1 - level)), 3) for level in moved] == [0.539, 0.694]


def test_schedulers_of_another_kind_are_refused() -> None:
    for change in ({"use_karras_sigmas": True}, {"time_shift_type": "linear"}):
        with pytest.raises(BadInput, match="not shifted exponentially"):
            Shift.of(SCHEDULER | change)


@pytest.mark.parametrize("times", DENSITIES)
def test_densities_are_those_of_diffusers(times: Times) -> None:
    draws = (np.arange(20000) + 0.5) / 20000
    ours = np.sort([density(float(draw), times) for draw in draws])
    theirs = compute_density_for_timestep_sampling(
        times, 100_000, logit_mean=0.0, logit_std=1.0, mode_scale=MODE_SCALE, generator=torch.Generator().manual_seed(0)
    )
    for part in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        assert np.quantile(ours, part) == pytest.approx(float(theirs.quantile(part)), abs=0.01)
    assert density(0.0, times) >= 0
    assert density(1 - 1e-16, times) <= 1


@pytest.mark.parametrize("times", DENSITIES)
def test_levels_of_a_step_are_spread_evenly(times: Times) -> None:
    slots = 16
    for step in range(20):
        levels = [level_of(0, step, slot, slots, times) for slot in range(slots)]
        assert all(0 < level <= 1 and math.isclose(level * LEVELS, round(level * LEVELS)) for level in levels)
        edges = sorted(1 - density(at / slots, times) for at in range(slots + 1))
        for level, low, high in zip(sorted(levels), edges, edges[1:], strict=False):
            assert low - 1 / LEVELS <= level <= high + 1 / LEVELS


def test_each_slot_has_levels_of_all_sizes() -> None:
    levels = [level_of(0, step, 3, 4) for step in range(2000)]
    for low in (0.0, 0.25, 0.5, 0.75):
        share = sum(low < level <= low + 0.25 for level in levels) / len(levels)
        assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / len(levels)))


def test_noise_and_level_repeat_after_a_resume_and_differ_elsewhere() -> None:
    places = [(seed, step, slot) for seed in range(2) for step in range(3) for slot in range(4)]
    levels = {place: level_of(*place, 4) for place in places}
    noise = {place: noise_of(*place, (5, 64)) for place in places}
    assert levels == {place: level_of(*place, 4) for place in reversed(places)}
    assert all(np.array_equal(noise[place], noise_of(*place, (5, 64))) for place in reversed(places))
    assert len(set(levels.values())) >= len(places) - 2  # of 1,000 levels two may be alike
    assert len({part.tobytes() for part in noise.values()}) == len(places)
    many = noise_of(0, 0, 0, (1000, 64))
    assert (many.dtype, abs(many.mean()) < 0.02, abs(many.std() - 1) < 0.02) == (np.float32, True, True)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (2, 4)])
def test_packing_is_that_of_diffusers(height: int, width: int) -> None:
    latents = torch.randn(2, 16, height, width)
    grid, size = Grid(), (height * 8, width * 8)
    tokens = grid.pack(latents)
    assert torch.equal(tokens, QwenImageEditPlusPipeline._pack_latents(latents[:, None], 2, 16, height, width))
    assert tokens.shape == (2, grid.tokens(size), 64)
    theirs = QwenImageEditPlusPipeline._unpack_latents(tokens, *size, 8)
    assert torch.equal(grid.unpack(tokens, size), theirs[:, :, 0])
    assert torch.equal(grid.unpack(tokens, size), latents)


def test_a_perfect_velocity_has_no_loss_and_recovers_the_picture() -> None:
    latents, noise, levels = torch.randn(3, 5, 64), torch.randn(3, 5, 64), torch.tensor([1.0, 0.5, 0.02])
    noisy = between(latents, noise, levels)
    assert torch.equal(noisy[0], noise[0])
    assert velocity_losses(noise - latents, latents, noise).tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(recovered(noisy, noise - latents, levels), latents, atol=1e-6)


def test_noise_is_laid_on_as_the_scheduler_does_it() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    latents, noise = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
    times = scheduler.timesteps[[100, 700]]
    assert torch.allclose(
        between(latents, noise, times / 1000), scheduler.scale_noise(latents, times, noise), atol=1e-6
    )


def test_a_loss_is_a_mean_over_the_numbers_of_a_target_in_fp32() -> None:
    velocity, latents, noise = torch.randn(3, 5, 64, 3).unbind(-1)
    losses = velocity_losses(velocity, latents, noise)
    assert losses[1] == pytest.approx(float((velocity[1] - noise[1] + latents[1]).square().mean()))
    assert velocity_losses(velocity.bfloat16(), latents.bfloat16(), noise.bfloat16()).dtype == torch.float32
