"""How much of a text is masked, which tokens, and what each masked token weighs: all a function of (seed, place).

A time t in (0, 1] masks a token with the rate r(t) = 1 - alpha(t): t under the linear schedule, cos(pi/2 (1 - t)) under
the cosine one. The negative ELBO (Sahoo et al. 2024, arXiv:2406.07524, eq. 10) weighs a masked token with
-alpha'(t) / (1 - alpha(t)), 1/t if linear. Two ways to mask:

- bernoulli  each token for itself with rate r(t), t in [EPS, 1]
- exact      a random subset of l of the n tokens; l is drawn as ceil(n r(t)) would be, and a token weighs 1 / (l P(l)),
             n / l if linear. The same mean, without the spread of l (facts: a fiftieth of the deviation at best).

Times are spread over the samples of a step, whatever they are and however they are dealt: `stratified` gives each of n
samples an n-th of the interval of its own, in random order; `antithetic` mirrors the second of two in the first.

A complementary pair masks a text once and then what was left (LaViDa: Li et al. 2025, arXiv:2505.16839): each token is
learned from once. Both halves have the law of a single draw, so the weights are those of one.

Shapes: T tokens of a layout, S segments (tokens that are noised to the same degree), n tokens of a segment.
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qvl_core.training.samples import Place
from qvl_core.training.seeds import mix

if TYPE_CHECKING:
    from qvl_mdlm.recipe import Diffusion

Array = NDArray[Any]
Schedule = Literal["linear", "cosine"]
Masks = Literal["bernoulli", "exact"]
Times = Literal["iid", "stratified", "antithetic"]
Weight = Literal["scheduler", "uniform"]
EPS = 1e-3  # smallest time of a Bernoulli mask; the bias is 0.0006 % (facts)


@dataclass(frozen=True)
class Noise:
    """What a recipe's `diffusion` block says of noise."""

    schedule: Schedule = "linear"
    masks: Masks = "exact"
    times: Times = "stratified"
    weight: Weight = "scheduler"
    complementary: bool = False

    @staticmethod
    def of(diffusion: "Diffusion") -> "Noise":
        """The noise of a recipe."""
        return Noise(**{field.name: getattr(diffusion, field.name) for field in fields(Noise)})

    def draw(self, segments: Array, seed: int, place: Place, other: bool = False) -> tuple[Array, Array]:
        """What is masked (T,) bool and the weight of each token (T,) float32, 0 where nothing is masked.

        segments  (T,) number of each token's segment, -1: never masked
        other     the other half of a complementary pair
        """
        rng = _rng(seed, "masks", place)
        times = self.times_of(int(segments.max(initial=-1)) + 1, seed, place)
        masked, weights = np.zeros(len(segments), bool), np.zeros(len(segments), np.float32)
        for segment, time in enumerate(times):
            places = np.flatnonzero(segments == segment)
            chosen, weight = self._segment(len(places), float(time), rng, other)
            masked[places[chosen]] = True
            weights[places[chosen]] = weight if self.weight == "scheduler" else 1.0
        return masked, weights

    def times_of(self, count: int, seed: int, place: Place) -> Array:
        """The times (S,) in [0, 1) of the segments of a sample."""
        if self.times == "iid":
            return _rng(seed, "times", place).random(count)
        turned = _rng(seed, "segments", place).permutation(count)
        # Each uniform, and spread over the interval together.
        return (self._time(seed, place) + turned / max(1, count)) % 1.0

    def _time(self, seed: int, place: Place) -> float:
        """The first time of a sample in [0, 1)."""
        if self.times == "antithetic":
            time = float(_rng(seed, "times", place._replace(slot=place.slot // 2)).random())
            return time if place.slot % 2 == 0 else (1.0 - time) % 1.0
        strata = np.random.default_rng(mix(seed, "strata", place.step)).permutation(place.of)
        return float((strata[place.slot] + _rng(seed, "times", place).random()) / place.of)

    def _segment(self, n: int, time: float, rng: np.random.Generator, other: bool) -> tuple[Array, float]:
        """Which of n tokens are masked (l,), and what each weighs; with `other`, the rest in their place."""
        if n == 0:
            return np.zeros(0, int), 0.0
        if self.masks == "bernoulli":
            # The rest of a pair is masked at the rate 1 - t, which must not be 0 either.
            t = EPS + (1 - (2 if self.complementary else 1) * EPS) * time
            masked = rng.random(n) < rate(t, self.schedule)
            t, masked = (1 - t, ~masked) if other else (t, masked)
            return np.flatnonzero(masked), weight(t, self.schedule)
        order = rng.permutation(n)
        if self.complementary:  # l from 0 to n, so that n - l has the same law
            count = min(int(time * (n + 1)), n)
            chosen = order[count:] if other else order[:count]
            return chosen, (n + 1) / max(1, len(chosen))
        count = min(int(rate(time, self.schedule) * n), n - 1) + 1
        return order[:count], 1 / (count * probability(count, n, self.schedule))


def rate(t: float, schedule: Schedule) -> float:
    """Part of the tokens that is masked at time t: 1 - alpha(t)."""
    return t if schedule == "linear" else math.cos(math.pi / 2 * (1 - t))


def time_of(rate: float, schedule: Schedule) -> float:
    """The inverse of `rate`."""
    return rate if schedule == "linear" else 1 - 2 / math.pi * math.acos(min(1.0, rate))


def weight(t: float, schedule: Schedule) -> float:
    """-alpha'(t) / (1 - alpha(t)), the weight of a token that is masked at time t."""
    return 1 / t if schedule == "linear" else math.pi / 2 * math.tan(math.pi / 2 * (1 - t))


def probability(count: int, n: int, schedule: Schedule) -> float:
    """P(ceil(n rate(t)) = count) for t uniform on (0, 1]."""
    return time_of(count / n, schedule) - time_of((count - 1) / n, schedule)


def _rng(seed: int, what: str, place: Place) -> np.random.Generator:
    return np.random.default_rng(mix(seed, what, place.step, place.slot))
