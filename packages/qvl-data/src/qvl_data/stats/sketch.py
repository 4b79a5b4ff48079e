"""Counting in bounded memory: the same result whatever the order of merging steps, exact while there is room."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

DISTINCT = 10_000
"""Values that a Tally keeps; beyond, the rarest are dropped."""
NUMBERS = 20_000
"""Different numbers that a Distribution keeps as they are; beyond, they are rounded to three digits."""


@dataclass(frozen=True)
class Counts:
    """How often each value occurs.

    total     occurrences in all
    distinct  different values; None if there were too many to keep
    top       the most frequent values with their counts, most frequent first
    missed    how much too low a count may be; 0 unless there were too many values to keep
    largest   share of the most frequent value, 0..1
    entropy   evenness, 0 (one value) to 1 (all equally frequent); None where `distinct` is, or without values
    """

    total: int
    distinct: int | None
    top: tuple[tuple[str, int], ...]
    missed: int
    largest: float
    entropy: float | None


class Tally:
    """Counts of values. Of more than `limit` different ones the frequent stay, each count too low by at most
    total / limit (Misra and Gries 1982; merged as in Agarwal et al. 2012, "Mergeable Summaries")."""

    def __init__(self, limit: int = DISTINCT) -> None:
        self.limit = limit
        self.counts: Counter[str] = Counter()
        self.total = 0
        self.missed = 0

    def add(self, value: str, count: int = 1) -> None:
        self.counts[value] += count
        self.total += count
        if len(self.counts) > 2 * self.limit:
            self._drop()

    def merge(self, other: "Tally") -> None:
        self.counts.update(other.counts)
        self.total += other.total
        self.missed += other.missed
        if len(self.counts) > self.limit:
            self._drop()

    def _drop(self) -> None:
        """Lower all counts by that of the first value that has no room."""
        drop = sorted(self.counts.values(), reverse=True)[self.limit]
        self.counts = Counter({value: count - drop for value, count in self.counts.items() if count > drop})
        self.missed += drop

    def summary(self, top: int) -> Counts:
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        exact = self.missed == 0
        return Counts(
            total=self.total,
            distinct=len(ranked) if exact else None,
            top=tuple(ranked[:top]),
            missed=self.missed,
            largest=ranked[0][1] / self.total if ranked else 0.0,
            entropy=_evenness(list(self.counts.values())) if exact and ranked else None,
        )


def _evenness(counts: list[int]) -> float:
    """Entropy of the shares over its largest possible value."""
    if len(counts) == 1:
        return 0.0
    total = sum(counts)
    entropy = -math.fsum(count / total * math.log(count / total) for count in counts)
    return min(entropy / math.log(len(counts)), 1.0)


@dataclass(frozen=True)
class Histogram:
    """How a number is distributed.

    Bin i holds the values v with edges[i] <= v < edges[i + 1], the last bin also its upper edge. `scale` says how the
    edges are spaced (log: 1, 2, 5, 10, ...). Without values there are no edges and all figures are 0.
    """

    count: int
    minimum: float
    maximum: float
    mean: float
    median: float
    p95: float
    scale: Literal["linear", "log"]
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Distribution:
    """Numbers from 0 up with their counts: exact up to NUMBERS different ones, then rounded to three digits."""

    def __init__(self) -> None:
        self.counts: Counter[float] = Counter()
        self.minimum, self.maximum = math.inf, -math.inf
        self._rounded = False

    def add(self, value: float, count: int = 1) -> None:
        self.minimum, self.maximum = min(self.minimum, value), max(self.maximum, value)
        self.counts[_three_digits(value) if self._rounded else value] += count
        self._make_room()

    def merge(self, other: "Distribution") -> None:
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        if other._rounded and not self._rounded:
            self._round()
        for value, count in other.counts.items():
            self.counts[_three_digits(value) if self._rounded else value] += count
        self._make_room()

    def _make_room(self) -> None:
        if not self._rounded and len(self.counts) > NUMBERS:
            self._round()

    def _round(self) -> None:
        self._rounded = True
        rounded: Counter[float] = Counter()
        for value, count in self.counts.items():
            rounded[_three_digits(value)] += count
        self.counts = rounded

    def summary(self) -> Histogram:
        total = sum(self.counts.values())
        if not total:
            return Histogram(0, 0, 0, 0, 0, 0, "linear", (), ())
        ranked = sorted(self.counts.items())
        scale, edges = _edges(self.minimum, self.maximum, all(value == int(value) for value, _ in ranked))
        counts = [0] * (len(edges) - 1)
        place = 0
        for value, count in ranked:
            while place < len(counts) - 1 and value >= edges[place + 1]:
                place += 1
            counts[place] += count
        return Histogram(
            count=total,
            minimum=self.minimum,
            maximum=self.maximum,
            mean=math.fsum(value * count for value, count in ranked) / total,
            median=_quantile(ranked, total, 0.5),
            p95=_quantile(ranked, total, 0.95),
            scale=scale,
            edges=tuple(edges),
            counts=tuple(counts),
        )


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _quantile(ranked: list[tuple[float, int]], total: int, share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    needed, seen = math.ceil(share * total), 0
    for value, count in ranked:
        seen += count
        if seen >= needed:
            return value
    return ranked[-1][0]


def _edges(low: float, high: float, whole: bool) -> tuple[Literal["linear", "log"], list[float]]:
    """Round edges of at most about 25 bins around `low` .. `high`; whole numbers that are few get a bin each."""
    if whole and high - low < 20:
        return "linear", [float(edge) for edge in range(int(low), int(high) + 2)]
    if high > 50 * max(low, 1e-9):
        smallest = max(low, 1 if whole else high / 1e7)
        edges = [edge for edge in _one_two_five(smallest, high) if edge > 0]
        return "log", [0.0, *edges] if low < edges[0] else edges
    span = (high - low) or max(abs(high), 1.0)
    step = next(step for step in _one_two_five(span / 50, span) if span / step <= 20)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return "linear", [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _one_two_five(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... from at most `low` up to at least `high`."""
    power = math.floor(math.log10(low))
    edges: list[float] = []
    while not edges or edges[-1] < high:
        edges.extend(float(f"{digit}e{power}") for digit in (1, 2, 5))
        power += 1
    first = max(i for i, edge in enumerate(edges) if edge <= low)
    last = next(i for i, edge in enumerate(edges) if edge >= high)
    return edges[first : last + 1]
