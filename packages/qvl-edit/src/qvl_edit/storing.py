"""One pass over all samples of a recipe's lists, shared by the processes of a run, that fills a store."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qvl_core.evaluation import LEFT_OUT, write_lines
from qvl_core.recipe.blocks import Data
from qvl_core.training.filling import Walk, fill
from qvl_core.training.left_out import check_bad, left_out
from qvl_core.training.store import Store
from qvl_core.training.world import World
from qvl_data.progress import track


def fill_store(
    store: Store,
    walk: Walk,
    entries: Callable[[Any, Mapping[bytes, Tensor]], Mapping[bytes, Tensor]],
    data: Data,
    world: World,
    title: str,
    listed: Path,
) -> tuple[Store, int]:
    """Write the windows that are lacking; the whole store, and how many samples of all windows could not be used.

    entries  of a batch, what is stored by key; it is given what its shard has already
    title    of the line that shows how far the first process is
    listed   folder of left_out.jsonl, which says what could not be used

    Raises BadInput, once for all processes, for more of these than `data.max_bad`.
    """
    names, there = walk.windows.names(), set(world.on_first(store.shards))  # as all have it, before one writes
    own = [number for number in range(len(names)) if names[number] not in there][world.rank :: world.size]
    watched = None if world.rank else track(own, title, len(own))
    world.on_each(lambda: fill(store, walk, own, entries, data.max_bad, world, data.workers, watched))

    def finish() -> tuple[Store, int]:
        bad = left_out(store, names)
        write_lines(listed / LEFT_OUT, [*bad.values()])
        check_bad(bad, data.max_bad)
        whole = store.again()
        whole.tidy()
        return whole, len(bad)

    return world.on_first(finish)
