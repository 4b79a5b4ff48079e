from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_data.order import mix, order, orders


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**64), st.integers(0, 50), st.integers(1, 400))
def test_every_epoch_is_a_permutation(seed, epoch, n):
    assert sorted(order(seed, epoch * n + i, n) for i in range(n)) == list(range(n))


def test_epochs_and_seeds_differ():
    def epoch(seed, number):
        return [order(seed, number * 100 + i, 100) for i in range(100)]

    orders = [epoch(seed, number) for seed in range(5) for number in range(5)]
    assert len({tuple(one) for one in orders}) == 25
    agreeing = sum(a == b for x, y in pairwise(orders) for a, b in zip(x, y, strict=True))
    assert agreeing < 70  # 24 pairs of orders agree at 24 places by chance


@pytest.mark.parametrize("n", [2, 3, 5, 10, 65])
def test_every_index_is_as_likely_at_every_position(n):
    draws = 3000
    counts = Counter(order(seed, position, n) for seed in range(draws // n) for position in [1])
    expected = draws // n / n
    chi2 = sum((counts[index] - expected) ** 2 / expected for index in range(n))
    assert chi2 < 2.2 * (n - 1) + 14  # far in the tail of chi-square with n - 1 degrees of freedom


@pytest.mark.parametrize("n", [3, 4])
def test_all_permutations_of_a_few_are_reached(n):
    seen = Counter(tuple(order(seed, i, n) for i in range(n)) for seed in range(2400))
    permutations = {3: 6, 4: 24}[n]
    assert len(seen) == permutations
    assert min(seen.values()) > 2400 / permutations * 0.6


def test_neighbours_are_not_kept_together():
    one = [order(1, i, 10_000) for i in range(10_000)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(one)) < 12
    assert abs(sum(one[:5000]) / 5000 - 4999.5) < 150


def test_any_position_is_reached_at_once():
    assert 0 <= order(3, 10**15, 10**7) < 10**7


def test_the_order_never_changes():
    """Runs that were started with an older version go on with the same data."""
    assert [order(0, i, 10) for i in range(20)] == GOLDEN
    assert mix(1, 2, 3) == 15020427595393229491


GOLDEN = [3, 6, 1, 8, 0, 9, 2, 4, 5, 7, 3, 9, 7, 5, 2, 1, 8, 4, 0, 6]


@pytest.mark.parametrize(("position", "n"), [(-1, 5), (0, 0)])
def test_impossible_positions(position, n):
    with pytest.raises(ValueError, match="order needs"):
        order(0, position, n)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**64), st.lists(st.integers(0, 10**12), max_size=50), st.integers(1, 10**7))
def test_many_positions_at_once_are_the_same_order(seed, positions, n):
    assert orders(seed, np.array(positions, np.int64), n).tolist() == [order(seed, one, n) for one in positions]


def test_many_impossible_positions():
    with pytest.raises(ValueError, match="order needs"):
        orders(0, np.array([3, -1]), 5)
