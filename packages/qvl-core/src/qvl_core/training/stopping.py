"""Requests to stop: SIGTERM, SIGUSR1 (SLURM's warning) and Ctrl-Break become a flag that the loop reads each step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)]


class Request:
    """Whether someone asked the run to stop."""

    asked = False


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Listen while the loop runs; what was installed before is put back. Outside the main thread nothing is heard."""
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        request.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
