"""Work of each process by itself, however long the others take: what fails in one of them ends all of them soon.

    on_each(work, store, rank, size)

A process that works cannot be spoken to, so a thread of it looks into the store that all share, which process 0 keeps.
"""

import ctypes
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from qvl_core.errors import QVLError, known_to_all

T = TypeVar("T")
LOOK = 0.2  # seconds between two looks at the others
HEARD = 5.0  # seconds that a failure waits for the others to hear of it; one may be deep in a kernel


def on_each(work: Callable[[], T], store: Store, rank: int, size: int) -> T:
    """What `work` gives here, when all `size` processes are done.

    store  of this piece of work alone

    Raises the QVLError of the first process that has one, on all of them: process 0 tells it.
    """
    result: T | None = None
    try:
        with _listening(store):
            result = work()
    except QVLError as error:
        store.compare_set("failed", "", pickle.dumps(error).hex())
    except _Called:
        pass
    else:
        store.add("done", 1)
        _wait(lambda: store.add("done", 0) == size or _failed(store))
    if not _failed(store):
        return cast(T, result)
    failure = pickle.loads(bytes.fromhex(store.get("failed").decode()))
    raise known_to_all(failure) if _heard(store, rank, size) else failure


class _Called(BaseException):
    """Another process failed. Not an Exception: no work may take it for an error of its own."""


def _failed(store: Store) -> bool:
    return bool(store.check(["failed"]))


def _heard(store: Store, rank: int, size: int) -> bool:
    """Whether process 0 tells it. With it goes the store, so it goes last."""
    store.add("heard", 1)
    if rank == 0:
        store.set("told", "")
        _wait(lambda: store.add("heard", 0) == size, HEARD)
        return True
    try:
        return _wait(lambda: bool(store.check(["told"])), HEARD)
    except DistError:  # it was faster
        return True


def _wait(until: Callable[[], bool], most: float = float("inf")) -> bool:
    """Whether it came to that."""
    end = time.monotonic() + most
    while not until():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK)
    return True


@contextmanager
def _listening(store: Store) -> Iterator[None]:
    """Raise _Called in this thread, between two of its instructions, when another process fails meanwhile."""
    thread, done, lock = threading.get_ident(), threading.Event(), threading.Lock()

    def call(kind: type[BaseException] | None) -> None:
        what = None if kind is None else ctypes.py_object(kind)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)

    def listen() -> None:
        while not done.wait(LOOK):
            try:
                failed = _failed(store)
            except DistError:  # process 0 is gone, and whoever started the run ends it
                return
            with lock:
                if failed and not done.is_set():
                    call(_Called)
                    return

    threading.Thread(target=listen, name="listening", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            done.set()
            call(None)  # one that was not raised yet
