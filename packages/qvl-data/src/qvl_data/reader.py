"""Bytes of a file by position, for rows in any order.

A data set may have more shards than a process may have open files: the 64 used last stay open. Positions are never
shared, neither by threads nor by worker processes that were forked.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

OPEN = 64
"""Files that stay open in a process."""


class Reader:
    """One file, opened when it is first read and again after pickling."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`, fewer where the file ends."""
        file = _opened(self)
        data = _read(file, start, size)
        while len(data) < size and (more := _read(file, start + len(data), size - len(data))):
            data += more
        return data


@lru_cache(maxsize=OPEN)
def _opened(reader: Reader) -> BinaryIO:
    """Closed when it is forgotten and nobody reads from it any more."""
    return reader.path.open("rb", buffering=0)


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, start)
    file.seek(start)  # Windows, which forks no processes
    return file.read(size)
