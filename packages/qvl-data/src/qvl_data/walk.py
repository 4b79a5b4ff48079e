"""Opening all splits of a source, and going through them in steps of so many samples, in one process or in several.

Results come in order. What a step gives must depend on nothing but the step, so that the whole is the same for every
number of workers.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qvl_core.errors import BadInput, QVLError

from .chosen import open_lists, sources_in
from .dataset import SUFFIXES, Dataset, splits
from .formats import get_format
from .registry import look_up

if TYPE_CHECKING:
    from .registry import Registered

T = TypeVar("T")


def open_splits(
    source: str | Path, split: str | None = None, **reading: Any
) -> tuple[dict[str, Dataset], list[BadInput]]:
    """All splits of a source (or the one named), and what is wrong with those that are none.

    source    file (its split is called by its stem), folder, registered name, name on the hub, or text that chooses
              among such (`digits%50`, `a + b`; see `chosen`); a path that is there is one
    reading   options of Dataset: format, media_root, allow_root, max_pixels, columns

    Raises BadInput if there is nothing at `source`, or no such split, format or media root.
    """
    _check(**reading)
    if (sources := sources_in(str(source))) is not None:
        return open_lists(sources, split, **reading)
    named, path = look_up(str(source)), Path(source)
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


def _check(
    format: str | None = None, columns: Mapping[str, str] | None = None, media_root: str | Path | None = None, **_: Any
) -> None:
    """Raise BadInput for what is wrong with the command, not with the data."""
    if format is not None:
        get_format(format, columns)
    if media_root is not None and not Path(media_root).is_dir():
        raise BadInput(f"{media_root}: the media root is no folder.")


def inputs(source: str | Path) -> list[Path]:
    """The files and folders that a source stands for, as the journal of a verb watches them."""
    found = (one.paths.values() if one else [Path(name)] for name, one in _look_up(source).items())
    return list(dict.fromkeys(chain.from_iterable(found)))


def said(source: str | Path) -> dict[str, Any]:
    """What decides about a source's samples beside its files (JSON): the text that chooses, and the registry."""
    sources = sources_in(str(source))
    chosen = [one.model_dump(mode="json", exclude_defaults=True) for one in sources or ()]
    return {
        "sources": chosen,
        "registered": {name: one.reading for name, one in _look_up(source).items() if one is not None},
    }


def check_outside(folder: Path, source: str | Path) -> None:
    """Raise BadInput if a folder to write lies inside the data that is read."""
    for path in inputs(source):
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise BadInput(f"{folder}: lies inside the data that is read; choose a folder outside of {path}.")


def _look_up(source: str | Path) -> "dict[str, Registered | None]":
    """Every name in a source, and what the registry says of it."""
    sources = sources_in(str(source))
    names = [str(source)] if sources is None else [one.source for one in sources]
    return {name: look_up(name) for name in names}


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
