"""A live line of progress on a terminal; nothing where nobody looks (a file, a pipe, CI)."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(things: Iterable[T], what: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """The same things, while standard error shows how many went by, how fast, and how long the rest takes.

    what   what is being done, such as `validate photos.jsonl`
    done   how many of `total` were done by an earlier run
    """
    if not sys.stderr.isatty():
        yield from things
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, completed=done)
        for thing in things:
            yield thing
            progress.advance(task)
