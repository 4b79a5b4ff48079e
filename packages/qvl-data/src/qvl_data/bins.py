"""Best-fit decreasing (Johnson 1974) on the histogram of lengths, with the bin of every item.

Each item, longest first, goes into the fullest bin that has room. All items of one length are placed together, and so
are bins with the same room: the cost depends on the number of different lengths, not of items. Needs at most 11/9 of
the fewest possible bins, plus one (without a limit of media); on the lengths of real data about 1.0001 of them.
"""

from bisect import bisect_left, insort
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: NDArray[np.int64], media: NDArray[np.int64], capacity: int, most: int) -> NDArray[np.int64]:
    """The bin (0, 1, ...) of each item, in the order of their opening.

    lengths  (N,) in 1..capacity
    media    (N,) in 0..most

    Of the bins with room for an item the one with the least room is taken; after all items of its kind that fit into
    it, it is the next one's best fit again, so that whole runs of items and bins are assigned at once.
    """
    bins = np.empty(len(lengths), np.int64)
    kind = lengths * (most + 1) + media
    size = lengths * most + media * capacity if most else lengths  # tokens and media, each as part of what a bin holds
    by_kind = np.lexsort((kind, size))[::-1] if most else np.argsort(-lengths, kind="stable")
    ends = np.flatnonzero(np.diff(kind[by_kind], append=-1)) + 1
    open_bins = _OpenBins(most)
    start = opened = 0
    for end in ends.tolist():
        items, start = by_kind[start:end], end
        length, shown = int(lengths[items[0]]), int(media[items[0]])
        while len(items):
            found = open_bins.smallest(length, shown)
            room, left = found or (capacity, most)
            each = min(room // length, left // shown) if shown else room // length
            full, rest = divmod(len(items), each)
            if found is None:
                taken = np.arange(opened, opened + full + (rest > 0))
                opened += len(taken)
            else:
                taken = open_bins.take(room, left, max(1, full))
                full, rest = min(full, len(taken)), rest if full == 0 else 0
            whole, part = taken[:full], taken[full:]
            bins[items[: full * each]] = np.repeat(whole, each)
            open_bins.put(room - each * length, left - each * shown, whole)
            if len(part):
                bins[items[full * each : full * each + rest]] = part
                open_bins.put(room - rest * length, left - rest * shown, part)
            items = items[full * each + rest :]
    return bins


class _OpenBins:
    """Bins with room, found by their tokens and media that are left."""

    def __init__(self, most: int) -> None:
        self._rooms: list[list[int]] = [[] for _ in range(most + 1)]  # by media left: tokens left, rising
        self._bins: dict[tuple[int, int], list[NDArray[np.int64]]] = defaultdict(list)

    def smallest(self, length: int, shown: int) -> tuple[int, int] | None:
        """Tokens and media left in the fullest bins that have room for an item."""
        best: tuple[int, int] | None = None
        for left in range(shown, len(self._rooms)):
            rooms = self._rooms[left]
            at = bisect_left(rooms, length)
            if at < len(rooms) and (best is None or rooms[at] < best[0]):
                best = rooms[at], left
        return best

    def take(self, room: int, left: int, count: int) -> NDArray[np.int64]:
        """At most `count` of the bins with this room."""
        kept = self._bins[room, left]
        bins = kept.pop()
        if len(bins) > count:
            kept.append(bins[count:])
        if not kept:
            del self._bins[room, left]
            self._rooms[left].remove(room)
        return bins[:count]

    def put(self, room: int, left: int, bins: NDArray[np.int64]) -> None:
        if room and len(bins):
            if (room, left) not in self._bins:
                insort(self._rooms[left], room)
            self._bins[room, left].append(bins)
