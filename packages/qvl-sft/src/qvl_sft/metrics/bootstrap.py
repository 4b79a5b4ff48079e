"""How far a figure could be off because the samples are few: resampling (Efron 1979), and the sign test.

Every answer is drawn as often as chance has it; what a metric's parts then sum to gives one figure. 95 % of these
figures lie in the interval. Two models are resampled by the same draws, so that what is hard for both cancels out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qvl_sft.metrics import Array, Tally

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 1 << 22  # counts that are held at a time

Interval = tuple[float, float]
_NONE = (math.nan, math.nan)


def intervals(tallies: Mapping[str, Tally], seed: int = 0) -> dict[str, Interval]:
    """The 95 % interval of each figure, all from the same draws; nan where there is none."""
    drawn = _resampled(list(tallies.values()), seed)
    return {name: _interval(figures) for name, figures in zip(tallies, drawn, strict=True)}


def differences(one: Mapping[str, Tally], other: Mapping[str, Tally], seed: int = 0) -> dict[str, Interval]:
    """The 95 % interval of `other` - `one`; their answers are to the same questions in the same order."""
    drawn = _resampled([*one.values(), *other.values()], seed)
    pairs = zip(one, drawn[: len(one)], drawn[len(one) :], strict=True)
    return {name: _interval(theirs - ours) for name, ours, theirs in pairs}


def sign_test(more: int, less: int) -> float:
    """p of the two-sided sign test: how likely a split at least as uneven is if neither were more likely."""
    total, fewer = more + less, min(more, less)
    if total == 0:
        return 1.0
    ways, tail = 1, 0  # ways = total over k
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (total - k) // (k + 1)
    return min(1.0, 2 * tail / 2**total)  # whole numbers until the last division


def _resampled(tallies: Sequence[Tally], seed: int) -> list[Array]:
    """(RESAMPLES,) figures of each tally."""
    if not tallies or not len(tallies[0].parts):
        return [np.full(RESAMPLES, np.nan) for _ in tallies]
    joined = np.concatenate([tally.parts for tally in tallies], axis=1)  # (N, sum of K)
    sums = np.concatenate([counts @ joined for counts in _counts(len(joined), seed)])  # (RESAMPLES, sum of K)
    ends = np.cumsum([tally.parts.shape[1] for tally in tallies])[:-1]
    return [tally.figure(part) for tally, part in zip(tallies, np.split(sums, ends, axis=1), strict=True)]


def _counts(samples: int, seed: int) -> Iterator[Array]:
    """(rows, N) how often each of N samples is drawn, RESAMPLES rows in all, a block at a time."""
    random = np.random.default_rng(seed)
    rows = max(1, min(RESAMPLES, BLOCK // samples))
    for start in range(0, RESAMPLES, rows):
        many = min(rows, RESAMPLES - start)
        drawn = random.integers(samples, size=(many, samples)) + samples * np.arange(many)[:, None]
        yield np.bincount(drawn.ravel(), minlength=many * samples).reshape(many, samples).astype(np.float64)


def _interval(figures: Array) -> Interval:
    sound = figures[np.isfinite(figures)]
    if not len(sound):
        return _NONE
    low, high = np.quantile(sound, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
