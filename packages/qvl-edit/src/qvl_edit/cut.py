"""A step's slots cut into forwards of equal shapes, and those dealt to processes. Pure functions.

All slots of a step are drawn before they are cut, so that what a step learns from does not depend on the number of
processes or on how much one forward holds. One forward holds pictures of equal sizes only, because the rotary
embedding reads the sizes of its first sample for all of them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Size = tuple[int, int]  # height, width


class Bucket(NamedTuple):
    """The sizes of a sample's target and of its sources, in order."""

    target: Size
    sources: tuple[Size, ...] = ()

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The target's, then those of the sources."""
        return (self.target, *self.sources)

    @property
    def area(self) -> int:
        """All its pictures together."""
        return sum(height * width for height, width in self.sizes)


def cut(
    buckets: Sequence[Bucket], micro: int | None, world: int = 1, lengths: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """The slots of each forward: at most `micro` of one bucket, the largest pictures first, then by slot.

    buckets  of each slot
    micro    default: all of a bucket; never more than leave each process a share
    lengths  of each slot's text, where those of a forward have to be equal
    """
    most = max(1, math.ceil(len(buckets) / world))
    most = most if micro is None else min(micro, most)
    slots: dict[tuple[Bucket, int], list[int]] = {}
    for slot, alike in enumerate(zip(buckets, lengths or [0] * len(buckets), strict=True)):
        slots.setdefault(alike, []).append(slot)
    ordered = sorted(slots, key=lambda alike: (-alike[0].area, *alike))
    return [tuple(slots[alike][at : at + most]) for alike in ordered for at in range(0, len(slots[alike]), most)]


def deal(forwards: Sequence[tuple[int, ...]], rank: int, world: int) -> list[tuple[int, ...]]:
    """One process's forwards. All have equally many: an empty one stands where there are none left.

    They are dealt like cards, so that those of a round, of which the slowest decides, are about equally large.
    """
    rounds = math.ceil(len(forwards) / world)
    mine = list(forwards[rank::world])
    return mine + [()] * (rounds - len(mine))
