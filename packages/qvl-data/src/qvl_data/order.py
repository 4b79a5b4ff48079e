"""A random order without a list: position -> index is computed, so resuming anywhere costs nothing.

Each epoch is its own permutation of range(n): a Feistel network over the next even power of two, walked until it
falls inside range(n) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). The hash is our own, so the
order never changes with NumPy's or Python's random streams.
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
_MASK = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROUNDS = 8
_MIN_HALF = 3  # bits; smaller networks have too few permutations to look random


def mix(*numbers: int) -> int:
    """One 64-bit hash of integers (splitmix64 finaliser, chained); order and count of the arguments matter."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + _STEP & _MASK
        state = (state ^ state >> 30) * _FIRST & _MASK
        state = (state ^ state >> 27) * _SECOND & _MASK
        state ^= state >> 31
    return state


def order(seed: int, position: int, n: int) -> int:
    """Index in range(n) that stands at `position` (0, 1, ...) of an endless sequence of shuffled epochs.

    Positions e*n .. e*n + n-1 are a permutation of range(n), another one for every epoch e and every seed.
    """
    if n < 1 or position < 0:
        raise ValueError(f"order needs n >= 1 and position >= 0, got n={n}, position={position}")
    epoch, index = divmod(position, n)
    half, keys = _network(seed, epoch, n)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for key in keys:  # one round of mix(key, right), whose first step depends on the key alone
            state = (key ^ right) + _STEP & _MASK
            state = (state ^ state >> 30) * _FIRST & _MASK
            state = (state ^ state >> 27) * _SECOND & _MASK
            left, right = right, left ^ (state ^ state >> 31) & low
        index = left << half | right
        if index < n:
            return index


def orders(seed: int, positions: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """`order` of many positions at once, about fifty times as fast for thousands of them.

    positions  (N,) each >= 0
    """
    if n < 1 or (len(positions) and positions.min() < 0):
        raise ValueError(f"order needs n >= 1 and positions >= 0, got n={n}")
    epochs, places = np.divmod(positions, n)
    found = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = np.flatnonzero(epochs == epoch)
        half, keys = _network(seed, int(epoch), n)
        walking, index = here, places[here].astype(np.uint64)
        while len(walking):
            index = _permuted(index, half, keys)
            inside = index < n
            found[walking[inside]] = index[inside]
            walking, index = walking[~inside], index[~inside]
    return found


def _permuted(index: NDArray[np.uint64], half: int, keys: tuple[int, ...]) -> NDArray[np.uint64]:
    low = np.uint64((1 << half) - 1)
    left, right = index >> np.uint64(half), index & low
    for key in keys:
        state = (np.uint64(key) ^ right) + np.uint64(_STEP)  # arrays wrap at 64 bits
        state = (state ^ state >> np.uint64(30)) * np.uint64(_FIRST)
        state = (state ^ state >> np.uint64(27)) * np.uint64(_SECOND)
        left, right = right, left ^ (state ^ state >> np.uint64(31)) & low
    return left << np.uint64(half) | right


@lru_cache(maxsize=1024)
def _network(seed: int, epoch: int, n: int) -> tuple[int, tuple[int, ...]]:
    """Bits of each Feistel half, and what `mix` makes of the round keys of one epoch."""
    half = max(_MIN_HALF, ((n - 1).bit_length() + 1) // 2)
    return half, tuple(mix(mix(seed, epoch, n, turn)) for turn in range(_ROUNDS))


def chosen(items: list[T], samples: int | None) -> list[T]:
    """A fixed random choice of so many items, the same in every run and on every process; None: all."""
    if samples is None or samples >= len(items):
        return items
    return [items[order(0, place, len(items))] for place in range(samples)]
