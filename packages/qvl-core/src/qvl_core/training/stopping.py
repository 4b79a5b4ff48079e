"""Requests to stop: SIGTERM, SIGUSR1 (SLURM's warning), Ctrl-Break and the first Ctrl-C set a flag for the loop.

A step is always finished. An evaluation may take an hour and can be done again: a lone process lets go of it at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGBREAK", "SIGINT") if hasattr(signal, name)]


class Interrupted(BaseException):
    """A request to stop, inside `Request.interruptible`. Not an Exception: no method's own code may take it for one."""


class Request:
    """Whether someone asked the run to stop."""

    def __init__(self) -> None:
        self.asked = False
        self._pressed = False  # Ctrl-C, once
        self._interruptible = False

    @contextmanager
    def interruptible(self, allowed: bool) -> Iterator[None]:
        """Raise Interrupted when a request comes inside, if `allowed`."""
        self._interruptible = allowed
        try:
            if allowed and self.asked:  # just before
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C is from someone who does not want to wait for a save."""
        if number == signal.SIGINT and self._pressed:
            raise KeyboardInterrupt
        self.asked, self._pressed = True, self._pressed or number == signal.SIGINT
        if self._interruptible:
            self._interruptible = False
            raise Interrupted


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Listen while the run lasts; what was installed before is put back. Outside the main thread nothing is heard."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
