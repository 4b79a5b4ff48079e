"""Which of many things are nearly the same, and which of those to keep.

The kept one comes first in a given order; whatever is near it goes. So everything that is removed is near something
that is kept, and no chain of small differences joins what is far apart. Memory is bounded by blocks; the result does
not depend on their size.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Pairs = tuple[Ints, Ints, Floats]
"""Left and right rows of near pairs, and how far apart they are."""

_BLOCKS = (256, 16_384)
"""Rows looked up at a time: few at first, which already removes most of what comes very often, then more."""
_CHUNK = 4_000_000  # candidate pairs looked at at a time
_BAND = 4  # entries of a signature that are looked up together
_COMPARED = 100_000  # signatures compared at a time


class Index(Protocol):
    """Finds what is near."""

    def near(self, rows: Ints) -> Iterator[Pairs]:
        """All pairs of one of `rows` with any other row, in pieces; a pair may come more than once."""
        ...


def keep_first(order: Ints, index: Index, blocks: tuple[int, int] = _BLOCKS) -> tuple[Ints, Floats]:
    """For each of N rows the row kept in its place (itself, if it is kept), and the distance to that: (N,) each.

    `order` (N,) holds the rows in order of preference. Goes through them: whatever is not removed yet is kept and
    removes all that is near it and comes later; the first one that removes a row is named.
    """
    count = len(order)
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    kept, distance = np.arange(count), np.zeros(count)
    gone = np.zeros(count, bool)
    start, (size, largest) = 0, blocks
    while start < count:
        rows = order[start : start + size]
        start, size = start + size, min(2 * size, largest)
        found = [_later(pairs, rank, gone) for pairs in index.near(rows[~gone[rows]])]
        if not found:
            continue
        left, right, far = (np.concatenate(column) for column in zip(*found, strict=True))
        for place in np.lexsort((rank[right], rank[left])).tolist():
            i, j = left[place], right[place]
            if not gone[i] and not gone[j]:
                kept[j], distance[j], gone[j] = i, far[place], True
    return kept, distance


def _later(pairs: Pairs, rank: Ints, gone: NDArray[np.bool_]) -> Pairs:
    """Only pairs whose right row comes later and is still there."""
    left, right, far = pairs
    use = (rank[left] < rank[right]) & ~gone[right]
    return left[use], right[use], far[use]


class Equal:
    """Rows of one group are the same: `groups` (N,)."""

    def __init__(self, groups: Ints) -> None:
        self._groups = groups
        self._table = _Table(numbered(groups[:, None]))

    def near(self, rows: Ints) -> Iterator[Pairs]:
        firsts = rows[np.sort(np.unique(self._groups[rows], return_index=True)[1])]  # each removes its whole group
        for left, right in self._table.candidates(firsts, 0):
            yield left, right, np.zeros(len(left))


class Hamming:
    """Rows of one group whose k-th hashes all differ in at most `radius` bits; the distance is that of the worst.

    groups  (N,)     only rows of one group are compared; all of a group have equally many hashes
    hashes  (M,)     64-bit hashes of all rows, one after the other
    starts  (N + 1,) where those of each row begin

    The first hash of each row is cut into m pieces. Of two hashes within `radius`, one piece differs in at most
    radius // m bits (Norouzi, Punjani and Fleet 2012, arXiv:1307.2982): each piece is looked up, with all such
    changes, in a table of its own.
    """

    def __init__(self, groups: Ints, hashes: NDArray[np.uint64], starts: Ints, radius: int) -> None:
        self._groups, self._hashes, self._starts, self._radius = groups, hashes, starts, radius
        self._counts = np.diff(starts)
        first = np.zeros(len(groups), np.uint64)
        first[self._counts > 0] = hashes[starts[:-1][self._counts > 0]]
        # One random word for each group: distances inside a group stay, and groups do not meet in the tables.
        first ^= _scrambled(groups)
        cuts = pieces(len(groups), radius)
        self._tables = [
            (_Table((first >> np.uint64(low) & np.uint64((1 << bits) - 1)).astype(np.int64), bits), bits)
            for low, bits in cuts
        ]
        self._changes = radius // len(cuts)

    def near(self, rows: Ints) -> Iterator[Pairs]:
        for table, bits in self._tables:
            for change in changes(bits, self._changes):
                for left, right in table.candidates(rows, change):
                    yield self._verified(left, right)

    def _verified(self, left: Ints, right: Ints) -> Pairs:
        use = (self._groups[left] == self._groups[right]) & (left != right)
        left, right = left[use], right[use]
        far = np.zeros(len(left), np.int64)
        for picture in range(int(self._counts[left].max(initial=0))):
            with_it = np.flatnonzero(self._counts[left] > picture)
            one = self._hashes[self._starts[left[with_it]] + picture]
            other = self._hashes[self._starts[right[with_it]] + picture]
            far[with_it] = np.maximum(far[with_it], np.bitwise_count(one ^ other))
            use = far <= self._radius
            left, right, far = left[use], right[use], far[use]
        return left, right, far.astype(np.float64)


def _scrambled(numbers: Ints) -> NDArray[np.uint64]:
    """A random-looking 64-bit word for each number (the finaliser of splitmix64)."""
    words = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


def pieces(count: int, radius: int) -> list[tuple[int, int]]:
    """How to cut 64 bits for `count` rows: (lowest bit, number of bits) of each piece; chosen by the work it makes."""

    def work(number: int) -> float:
        bits = 64 / number
        looks = number * sum(math.comb(math.ceil(bits), k) for k in range(radius // number + 1))
        return number * 2**bits + looks * (count + 20_000) + looks * count * count / 2**bits

    number = min(range(3, 17), key=work)
    edges = [64 * k // number for k in range(number + 1)]
    return [(low, high - low) for low, high in itertools.pairwise(edges)]


def changes(bits: int, most: int) -> Iterator[int]:
    """All words of `bits` bits with at most `most` ones."""
    for ones in range(most + 1):
        for places in itertools.combinations(range(bits), ones):
            yield sum(1 << place for place in places)


class _Table:
    """Rows by key: `keys` (N,) in 0 .. 2**bits - 1."""

    def __init__(self, keys: Ints, bits: int | None = None) -> None:
        self._keys = keys
        self._rows = np.argsort(keys, kind="stable")
        size = 1 << bits if bits is not None else int(keys.max(initial=-1)) + 1
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=size))])

    def candidates(self, rows: Ints, change: int) -> Iterator[tuple[Ints, Ints]]:
        """Pairs of one of `rows` with every row that has its key, changed by XOR with `change`."""
        keys = self._keys[rows] ^ change
        starts, counts = self._starts[keys], self._starts[keys + 1] - self._starts[keys]
        edges = np.searchsorted(np.cumsum(counts), np.arange(_CHUNK, counts.sum() + _CHUNK, _CHUNK), "left") + 1
        for low, high in itertools.pairwise([0, *np.unique(np.minimum(edges, len(rows))).tolist()]):
            some = counts[low:high]
            offsets = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
            yield np.repeat(rows[low:high], some), self._rows[np.repeat(starts[low:high], some) + offsets]


class Similar:
    """Rows whose signatures (N, 64) of `hashing.minhash` agree in at least `share` of their entries; the distance is
    what is left to 1.

    Rows are looked up by 16 bands of 4 entries: one that is equal makes two rows candidates. So pairs that share 80 %
    are found with a probability of 99.98 %, with 60 % of 89 %.
    """

    def __init__(self, signatures: NDArray[np.uint32], share: float) -> None:
        self._signatures, self._share = signatures, share
        bands = np.split(signatures, range(_BAND, signatures.shape[1], _BAND), axis=1)
        self._tables = [_Table(numbered(band)) for band in bands]

    def near(self, rows: Ints) -> Iterator[Pairs]:
        for table in self._tables:
            for left, right in table.candidates(rows, 0):
                for start in range(0, len(left), _COMPARED):
                    yield self._verified(left[start : start + _COMPARED], right[start : start + _COMPARED])

    def _verified(self, left: Ints, right: Ints) -> Pairs:
        agree = (self._signatures[left] == self._signatures[right]).mean(axis=1)
        use = (agree >= self._share) & (left != right)
        return left[use], right[use], 1 - agree[use]


def numbered(rows: NDArray[Any]) -> Ints:
    """Equal rows (N, K) get equal numbers from 0: (N,)."""
    if not len(rows):
        return np.zeros(0, np.int64)
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
    return np.unique(whole, return_inverse=True)[1].astype(np.int64)


class Cosine:
    """Rows whose vectors (N, D) have a cosine of at least `threshold`; the distance is 1 - cosine."""

    def __init__(self, vectors: NDArray[np.float32], threshold: float, block: int = 1024) -> None:
        self._vectors, self._threshold, self._block = vectors, threshold, block
        self._norms = np.concatenate([_norms(vectors[low : low + block]) for low in range(0, len(vectors), block)])

    def near(self, rows: Ints) -> Iterator[Pairs]:
        for low in range(0, len(rows), self._block):
            some = rows[low : low + self._block]
            ours = self._unit(some)
            for start in range(0, len(self._vectors), 16 * self._block):
                others = np.arange(start, min(start + 16 * self._block, len(self._vectors)))
                cosines = ours @ self._unit(others).T
                left, right = np.nonzero(cosines >= self._threshold)
                use = some[left] != others[right]
                left, right = left[use], right[use]
                yield some[left], others[right], np.maximum(1 - cosines[left, right], 0).astype(np.float64)

    def _unit(self, rows: Ints) -> NDArray[np.float32]:
        unit: NDArray[np.float32] = np.asarray(self._vectors[rows], np.float32) / self._norms[rows, None]
        return unit


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(np.linalg.norm(np.asarray(vectors, np.float32), axis=1), np.float32(1e-30))
