"""Bytes of a file by position, for rows in any order.

A data set may have more shards than a process may have open files: the 64 used last stay open. Positions are never
shared, neither by threads nor by worker processes that were forked.
"""

import os
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO

OPEN = 64
"""Files that stay open in a process."""
_seeking = Lock()


class Reader:
    """One file, opened when it is first read and again after pickling."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, fewer where the file ends."""
        file = _opened(self)
        data = _read(file, size, start)
        while len(data) < size and (more := _read(file, size - len(data), start + len(data))):
            data += more
        return data


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
