"""Going once through all samples of some data to fill a store: a window of samples is a shard.

    walk = Walk(Windows(lists, 128), batch=4, take=questions, made=Questions.of)
    fill(store, walk, missing, entries, allowed, world, workers)

What a killed run has not written the next one does, and processes and machines share the windows out. Windows are named
after the data, so a store may be added to from other data.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import ceil
from typing import Any, Protocol

from torch import Tensor

from qvl_core.training.left_out import check_bad, left_out, noted
from qvl_core.training.parts import Micro, TensorBatch
from qvl_core.training.prefetch import shares
from qvl_core.training.samples import Bad
from qvl_core.training.store import Store
from qvl_core.training.world import World


class Windows(Protocol):
    """Numbered samples in windows of `size` (`qvl_data.windows`)."""

    @property
    def size(self) -> int: ...

    def names(self) -> list[str]: ...

    def numbers(self, window: int) -> range: ...

    def gathered(
        self, numbers: Iterable[int], take: Callable[[Any, Any], Iterable[Any]]
    ) -> tuple[list[Any], tuple[Bad, ...]]: ...


@dataclass(frozen=True)
class Walk:
    """Every sample of some windows, one after the other: `qvl_core.training.parts.Batches`, a batch at a step.

    batch    samples that are read together
    take     what is made of a sample of a list
    made     what is stored of all that was taken of a batch, which is something
    missing  numbers of the windows that are gone through

    `take` and `made` are pickled into workers.
    """

    windows: Windows
    batch: int
    take: Callable[[Any, Any], Iterable[Any]]
    made: Callable[[Sequence[Any]], TensorBatch]
    missing: Sequence[int] = ()

    @property
    def steps(self) -> int:
        """Batches of a window."""
        return ceil(self.windows.size / self.batch)

    def plan(self, step: int, rank: int, world: int) -> range:
        window, place = divmod(step, self.steps)
        return self.windows.numbers(self.missing[window])[place * self.batch :][: self.batch]

    def build(self, plan: range) -> list[Micro]:
        found, bad = self.windows.gathered(plan, self.take)
        return [Micro(self.made(found) if found else None, len(found), 0, (), 0, bad)]


def fill(
    store: Store,
    walk: Walk,
    missing: Sequence[int],
    entries: Callable[[Any, Mapping[bytes, Tensor]], Mapping[bytes, Tensor]],
    allowed: int,
    world: World,
    workers: int | None,
    watched: Iterable[int] | None = None,
) -> None:
    """Write the shards of the windows `missing`, which no other process does.

    entries  of a batch, what is stored by key; it is given what its shard has already
    allowed  samples that cannot be used there may be (data.max_bad), of all windows, also of those that other processes
             write meanwhile
    watched  `missing`, shown as it goes by

    Raises BadInput for more bad samples than are allowed.
    """
    names = walk.windows.names()
    steps = shares(replace(walk, missing=missing), 0, len(missing) * walk.steps, world, workers)
    known: dict[str, Any] = {}
    read: set[str] = set()
    for number in missing if watched is None else watched:
        new = set(names).intersection(store.shards()) - read
        known |= left_out(store, sorted(new))
        read |= new
        held: dict[bytes, Tensor] = {}
        found: dict[str, Any] = {}
        for (micro,) in islice(steps, walk.steps):
            found |= {one.id: asdict(one) for one in micro.bad}
            check_bad(known | found, allowed)
            if micro.batch is not None:
                held |= entries(micro.batch, held)
        store.write(names[number], held, noted(found))
