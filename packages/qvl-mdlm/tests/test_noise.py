"""Masks and weights: the estimators of the negative ELBO, against the number that enumeration gives."""

import math
from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvl_core.training.samples import Place
from qvl_mdlm.noise import EPS, Noise, probability, rate, time_of, weight

V, L = 16, 5  # vocabulary and length of the example: 2^5 masks are enumerated


@pytest.fixture(scope="module")
def table(masked: Callable[..., Any]) -> dict[tuple[bool, ...], np.ndarray]:
    """(L,) nats of each token of a text of 16 words, for each set of masks, by the tiny model."""
    model = masked()
    text = torch.from_numpy(np.random.default_rng(0).integers(0, V, L))
    masks = torch.tensor(list(product((False, True), repeat=L)))
    ids = torch.where(masks, model.config.mask_token_id, text)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[..., :V]  # (32, L, V)
    nll = -logits.log_softmax(-1).gather(-1, text.expand(len(ids), L)[..., None])[..., 0]
    return dict(zip(product((False, True), repeat=L), nll.numpy(), strict=True))


@pytest.fixture(scope="module")
def nelbo(table: dict[tuple[bool, ...], np.ndarray]) -> float:
    """All masks enumerated: one of l tokens weighs (l - 1)! (L - l)! / L! (facts, section 5)."""
    total = 0.0
    for mask, nll in table.items():
        if count := sum(mask):
            total += math.factorial(count - 1) * math.factorial(L - count) / math.factorial(L) * nll[list(mask)].sum()
    return total


def estimates(table: dict[tuple[bool, ...], np.ndarray], noise: Noise, draws: int) -> np.ndarray:
    """(draws,) estimates; of a complementary pair the mean of both halves is one."""
    segments = np.zeros(L, int)
    halves = (False, True) if noise.complementary else (False,)
    values = []
    for place, other in product(places(draws), halves):
        masked, weights = noise.draw(segments, 7, place, other)
        values.append(float((table[tuple(masked.tolist())] * weights).sum()))
    return np.array(values).reshape(draws, len(halves)).mean(1)


def places(draws: int) -> list[Place]:
    """Of so many samples, 32 in a step."""
    return [Place(*divmod(draw, 32), 32) for draw in range(draws)]


def test_the_enumerated_bound_is_the_mean_over_all_orders(
    table: dict[tuple[bool, ...], np.ndarray], nelbo: float
) -> None:
    orders = []
    for order in permutations(range(L)):
        masked, total = [True] * L, 0.0
        for place in order:
            total += table[tuple(masked)][place]
            masked[place] = False
        orders.append(total)
    assert np.mean(orders) == pytest.approx(nelbo, abs=1e-6)


ESTIMATORS = {
    "bernoulli": Noise(masks="bernoulli", times="iid"),
    "bernoulli, cosine": Noise(masks="bernoulli", times="iid", schedule="cosine"),
    "bernoulli, stratified": Noise(masks="bernoulli", times="stratified"),
    "bernoulli, antithetic": Noise(masks="bernoulli", times="antithetic"),
    "bernoulli pair": Noise(masks="bernoulli", times="iid", complementary=True),
    "exact": Noise(masks="exact", times="iid"),
    "exact, cosine": Noise(masks="exact", times="iid", schedule="cosine"),
    "exact, stratified": Noise(masks="exact", times="stratified"),
    "exact, antithetic": Noise(masks="exact", times="antithetic"),
    "exact pair": Noise(masks="exact", times="stratified", complementary=True),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_lies_within_four_standard_errors(
    table: dict[tuple[bool, ...], np.ndarray], nelbo: float, name: str
) -> None:
    values = estimates(table, ESTIMATORS[name], 4000)
    blocks = values.reshape(-1, 32 if len(values) % 32 == 0 else 8).mean(1)  # strata and mirrored times are not i.i.d.
    error = blocks.std(ddof=1) / math.sqrt(len(blocks))
    assert abs(values.mean() - nelbo) < 4 * error, (values.mean(), nelbo, error)
    assert error < 0.1 * nelbo  # four errors say something


def test_exact_counts_have_a_fifth_of_the_spread_of_bernoulli_masks(
    table: dict[tuple[bool, ...], np.ndarray],
) -> None:
    exact, bernoulli = (estimates(table, ESTIMATORS[name], 4000).std() for name in ("exact", "bernoulli"))
    assert exact <= bernoulli / 5, (exact, bernoulli)


@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    step=st.integers(0, 500),
    masks=st.sampled_from(["bernoulli", "exact"]),
)
def test_a_pair_masks_every_token_once(n: int, seed: int, step: int, masks: str) -> None:
    noise = Noise(masks=masks, complementary=True)  # type: ignore[arg-type]
    segments = np.zeros(n, int)
    (one, _), (other, _) = (noise.draw(segments, seed, Place(step, 3, 8), half) for half in (False, True))
    np.testing.assert_array_equal(one, ~other)


@given(
    segments=st.lists(st.integers(-1, 3), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**6),
    schedule=st.sampled_from(["linear", "cosine"]),
    masks=st.sampled_from(["bernoulli", "exact"]),
    times=st.sampled_from(["iid", "stratified", "antithetic"]),
)
def test_only_what_may_be_masked_is_and_only_that_weighs(
    segments: list[int], seed: int, step: int, schedule: str, masks: str, times: str
) -> None:
    noise = Noise(schedule=schedule, masks=masks, times=times)  # type: ignore[arg-type]
    own, place = np.array(segments), Place(step, 1, 3)
    masked, weights = noise.draw(own, seed, place)
    assert not masked[own < 0].any()
    assert (weights[~masked] == 0).all()
    assert np.isfinite(weights).all()
    assert (weights[masked] >= 0).all()
    if masks == "exact":
        for segment in set(segments) - {-1}:
            assert masked[own == segment].any()
    again = noise.draw(own, seed, place)
    np.testing.assert_array_equal(again[0], masked)
    np.testing.assert_array_equal(again[1], weights)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_weights_are_the_derivative_of_the_schedule(schedule: str) -> None:
    for t in (0.05, 0.3, 0.7, 0.95):
        slope = (rate(t + 1e-6, schedule) - rate(t - 1e-6, schedule)) / 2e-6  # type: ignore[arg-type]
        assert weight(t, schedule) == pytest.approx(slope / rate(t, schedule), rel=1e-5)  # type: ignore[arg-type]
        assert time_of(rate(t, schedule), schedule) == pytest.approx(t)  # type: ignore[arg-type]
    assert sum(probability(count, 7, schedule) for count in range(1, 8)) == pytest.approx(1)  # type: ignore[arg-type]


@given(n=st.integers(1, 40), step=st.integers(0, 10**6))
def test_stratified_times_of_a_step_fill_each_stratum_once(n: int, step: int) -> None:
    noise = Noise(times="stratified")
    times = [noise.times_of(1, 3, Place(step, slot, n))[0] for slot in range(n)]
    assert sorted(int(time * n) for time in times) == list(range(n))


def test_antithetic_times_mirror_two_and_two_of_a_step() -> None:
    times = [Noise(times="antithetic").times_of(1, 3, Place(7, slot, 5))[0] for slot in range(5)]
    assert [times[0] + times[1], times[2] + times[3]] == pytest.approx([1, 1])
    assert len(set(times)) == 5


def test_times_of_the_blocks_of_a_sample_are_spread_over_the_interval() -> None:
    times = Noise(times="stratified").times_of(8, 3, Place(5, 0, 4))
    assert sorted(int(((time - times[0]) % 1.0) * 8 + 0.5) % 8 for time in times) == list(range(8))


def test_a_bernoulli_time_is_never_zero() -> None:
    masked, weights = Noise(masks="bernoulli", times="iid").draw(np.zeros(10_000, int), 0, Place(0, 0, 1))
    assert weights[masked].max() <= 1 / EPS
