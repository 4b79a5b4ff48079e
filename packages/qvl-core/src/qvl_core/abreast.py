"""Waiting for several things at a time, such as answers of a server, and for none of them when it is over."""

from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
V = TypeVar("V")
LISTEN = 0.1  # seconds between looks for Ctrl-C, which on Windows no thread hears while it waits


def abreast(work: Callable[[T], V], items: Sequence[T], most: int) -> Iterator[tuple[T, V]]:
    """Items with what `work` gives of them, `most` at a time, in the order in which they are done.

    What `work` raises is raised here. Then, at Ctrl-C, and when it is left early, nothing more is begun, and what still
    runs is left behind: threads that keep no process alive.
    """
    todo: SimpleQueue[T] = SimpleQueue()
    done: SimpleQueue[tuple[T, V] | BaseException] = SimpleQueue()
    for item in items:
        todo.put(item)

    def run() -> None:
        while (found := _next(todo)) is not None:
            try:
                done.put((found[0], work(found[0])))
            except BaseException as error:
                done.put(error)
                return

    for _ in range(min(most, len(items))):
        Thread(target=run, name="abreast", daemon=True).start()
    try:
        for _ in items:
            answer = _wait(done)
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    finally:
        while _next(todo) is not None:
            pass


def _next(queue: SimpleQueue[T]) -> tuple[T] | None:
    try:
        return (queue.get_nowait(),)
    except Empty:
        return None


def _wait(queue: SimpleQueue[T]) -> T:
    while True:
        try:
            return queue.get(timeout=LISTEN)
        except Empty:
            continue
