"""For the tests of every package: a process that dies at one of its file operations, as of `kill -9` or a power cut.

with operations() as done:                  # names, in the order of the calls
    write(folder)
with operations(die_at=len(done)):          # the last one is never done
    write(folder)
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

OPERATIONS = ("replace", "rename", "fsync", "unlink", "truncate", "mkdir")
"""Functions of `os` that change or sync files."""


def die() -> None:
    """What no process can catch; on Windows SIGTERM is just as final."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


@contextmanager
def operations(die_at: int = 0, names: Sequence[str] = OPERATIONS) -> Iterator[list[str]]:
    """Which of `names` this process calls; before the call of number `die_at` (from 1; 0: never) it dies."""
    done: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            done.append(name)
            if len(done) == die_at:
                die()
            return real(*given, **named)

        return call

    real = {name: getattr(os, name) for name in names}
    try:
        for name, function in real.items():
            setattr(os, name, counted(name, function))
        yield done
    finally:
        for name, function in real.items():
            setattr(os, name, function)
