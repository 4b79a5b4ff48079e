"""A random order without a list: position -> index is computed, so resuming anywhere costs nothing.

Each epoch is its own permutation of range(n): a Feistel network over the next even power of two, walked until it
falls inside range(n) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). The hash is our own, so the
order never changes with NumPy's or Python's random streams.
"""

from functools import lru_cache

_MASK = (1 << 64) - 1
_ROUNDS = 8
_MIN_HALF = 3  # bits; smaller networks have too few permutations to look random


def mix(*numbers: int) -> int:
    """One 64-bit hash of integers (splitmix64 finaliser, chained); order and count of the arguments matter."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
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
        for key in keys:
            left, right = right, left ^ (mix(key, right) & low)
        index = left << half | right
        if index < n:
            return index


@lru_cache(maxsize=1024)
def _network(seed: int, epoch: int, n: int) -> tuple[int, tuple[int, ...]]:
    """Bits of each Feistel half, and the round keys of one epoch."""
    half = max(_MIN_HALF, ((n - 1).bit_length() + 1) // 2)
    return half, tuple(mix(seed, epoch, n, turn) for turn in range(_ROUNDS))
