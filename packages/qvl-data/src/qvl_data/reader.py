"""Bytes of a file by position, for rows in any order.

A data set may have more shards than a process may have open files: the 64 used last stay open. Positions are never
shared, neither by threads nor by worker processes that were forked. Where rows stand is found out once, so a file that
was written anew since then is refused: its bytes would be those of other rows.
"""

import os
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from qvl_core.errors import BadInput

OPEN = 64
"""Files that stay open in a process."""
_seeking = Lock()


class Reader:
    """One file, opened when it is first read and again after pickling.

    Made before its rows are looked for; raises BadInput if it cannot be read, or has changed since it was made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._now()

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, fewer where the file ends."""
        file = _opened(self)
        self._compare(_state(file))
        data = _read(file, size, start)
        while len(data) < size and (more := _read(file, size - len(data), start + len(data))):
            data += more
        return data

    def check(self) -> None:
        """Raise BadInput unless the file is the one that was there at first."""
        self._compare(self._now())

    def _now(self) -> tuple[int, int]:
        try:
            with self.path.open("rb", buffering=0) as file:
                return _state(file)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read ({error.strerror}).") from None

    def _compare(self, state: tuple[int, int]) -> None:
        if state != self._seen:
            raise BadInput(f"{self.path}: was changed while it was in use, so its rows stand elsewhere; start again.")


def _state(file: BinaryIO) -> tuple[int, int]:
    """Size, and time of the last change in ns."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=OPEN)
def _opened(reader: Reader) -> BinaryIO:
    """Closed when it is forgotten and nobody reads from it any more."""
    return reader.path.open("rb", buffering=0)


def _seek_and_read(file: BinaryIO, size: int, start: int) -> bytes:
    with _seeking:
        file.seek(start)
        return file.read(size)


def _pread(file: BinaryIO, size: int, start: int) -> bytes:
    return os.pread(file.fileno(), size, start)


_read = _pread if hasattr(os, "pread") else _seek_and_read  # Windows forks no processes
