"""Randomness from (seed, step, slot) alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qvl_core.training.seeds import mix, reseed

parts = st.lists(st.one_of(st.integers(-(2**63), 2**63), st.sampled_from(["step", "window", "shift"])), max_size=4)


def test_the_same_on_every_machine_and_version() -> None:
    assert mix(0, "step", 1, 2) == 7986440277878847354
    reseed(0, "step", 1, 2)
    assert torch.randint(0, 2**31, (3,)).tolist() == [1476791170, 1397859828, 2096824625]


@given(parts, parts)
def test_other_parts_other_seed(first: list[int | str], second: list[int | str]) -> None:
    assert 0 <= mix(*first) < 2**63
    assert (mix(*first) == mix(*second)) == (first == second)


def test_seeds_of_neighbours_share_nothing() -> None:
    seeds = [mix(seed, "step", step, slot) for seed in range(3) for step in range(50) for slot in range(50)]
    assert len(set(seeds)) == len(seeds)
    halves = sum(seed >> 62 for seed in seeds) / len(seeds)
    assert 0.48 < halves < 0.52
