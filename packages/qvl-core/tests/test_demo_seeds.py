"""What the slow tests of demos say of results over seeds."""

from qvl_core.demo import Bar
from qvl_core.demo_testing import missed

BARS = {"right": Bar(0.9), "wrong": Bar(0.2, at_most=True), "seconds": Bar(10, at_most=True)}


def results(**values):
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def test_a_seed_may_lie_a_little_beyond_a_bar_that_the_mean_reaches():
    assert missed(results(right=[0.88, 0.95], wrong=[0.22, 0.1], seconds=[9, 10]), BARS) == {}


def test_a_mean_below_and_a_seed_far_below_are_told_with_their_figures():
    found = missed(results(right=[0.89, 0.9], wrong=[0.23, 0.0], seconds=[1, 1]), BARS)
    assert found == {"right": [0.89, 0.9], "wrong": [0.23, 0.0]}


def test_what_is_exact_may_lie_beyond_by_nothing():
    assert missed(results(right=[1, 1], wrong=[0, 0], seconds=[10.01, 1]), BARS) == {"seconds": [10.01, 1]}
    assert missed(results(right=[0.89, 1], wrong=[0, 0], seconds=[1, 1]), BARS, exact=("right",)) == {
        "right": [0.89, 1]
    }
