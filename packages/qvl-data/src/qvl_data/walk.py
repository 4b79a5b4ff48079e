"""Opening all splits of a source, and going through them in steps of so many samples, in one process or in several.

Results come in order. What a step gives must depend on nothing but the step, so that the whole is the same for every
number of workers.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qvl_core.errors import BadInput, QVLError

from .dataset import SUFFIXES, Dataset, splits

if TYPE_CHECKING:
    from .registry import Registered

T = TypeVar("T")


def open_splits(
    source: str | Path, split: str | None = None, **reading: Any
) -> tuple[dict[str, Dataset], list[BadInput]]:
    """All splits of a source (or the one named), and what is wrong with those that are none.

    source    file (its split is called by its stem), folder, registered name, or name on the hub
    reading   options of Dataset: format, media_root, allow_root, max_pixels, columns

    Raises BadInput if there is nothing at `source`, or no such split.
    """
    named, path = _registered(source), Path(source)
    known: list[str | None] = [None]
    if named is not None:
        known = named.split_names
    elif not path.is_file():
        known = list(splits(path))

    def open_one(name: str | None) -> Dataset:
        return named.open(name, **reading) if named is not None else Dataset(path, name, **reading)

    names = known if split is None else [split]
    if not names:
        raise BadInput(f"{source}: holds no data; {_inner(path)}.")
    sets: dict[str, Dataset] = {}
    broken: list[BadInput] = []
    for name in names:
        try:
            sets[name or path.stem] = open_one(name)
        except BadInput as error:
            if name not in known:
                raise
            broken.append(error)
    return sets, broken


def _inner(path: Path) -> str:
    """What to name instead of a folder without data."""
    holding = sorted({file.parent.name for suffix in SUFFIXES for file in path.glob(f"*/*{suffix}")})
    if not holding:
        return "name a file, or a folder with files such as train.parquet"
    more = f" and {len(holding) - 3} more" if len(holding) > 3 else ""
    return f"name one of its folders that do: {', '.join(holding[:3])}{more}"


def open_split(source: str | Path, split: str | None = None, **reading: Any) -> Dataset:
    """The one split of a source that is meant; see `open_splits`. Raises BadInput."""
    sets, broken = open_splits(source, split, **reading)
    if broken:
        raise broken[0]
    if len(sets) > 1:
        raise BadInput(f"{source}: which split? available: {', '.join(sets)}.")
    return next(iter(sets.values()))


def inputs(source: str | Path) -> list[Path]:
    """The files and folders that a source stands for, as the journal of a verb watches them."""
    named = _registered(source)
    return [Path(source)] if named is None else list(dict.fromkeys(named.paths.values()))


def _registered(source: str | Path) -> "Registered | None":
    from .registry import Registry

    return Registry().named(str(source))


@dataclass(frozen=True)
class Step:
    """Samples `start` up to `end` of one split."""

    split: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.split or 'all'} {self.start}..{self.end - 1}"


def steps(sets: Mapping[str, Sized], size: int) -> list[Step]:
    """All samples of all splits, in steps of `size`."""
    return [
        Step(split, start, min(start + size, len(data)))
        for split, data in sets.items()
        for start in range(0, len(data), size)
    ]


def walk(work: Callable[[Step], T], todo: Iterable[Step], workers: int = 1) -> Iterator[tuple[Step, T]]:
    """Each step with `work(step)`, in order; with several workers, `work` is pickled once for each of them.

    Raises QVLError if a worker dies (killed, out of memory), and whatever `work` raises.
    """
    if workers <= 1:
        yield from ((step, work(step)) for step in todo)
        return
    waiting: deque[tuple[Step, Future[T]]] = deque()
    rest = iter(todo)
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (work,)) as pool:
        try:
            for step in islice(rest, 2 * workers):
                waiting.append((step, pool.submit(_work, step)))
            while waiting:
                step, future = waiting.popleft()
                yield step, future.result()
                waiting.extend((following, pool.submit(_work, following)) for following in islice(rest, 1))
        except BrokenProcessPool:
            problem = f"a worker died at {step} or soon after (out of memory?); run with --workers 1"
            raise QVLError(f"{problem} to see at which sample.") from None
        finally:
            pool.shutdown(cancel_futures=True)


_given: Any = None


def _start(work: Any) -> None:
    global _given
    _given = work


def _work(step: Step) -> Any:
    return _given(step)
