"""Strict JSON: what the standard library lets pass (NaN, doubled keys, half surrogates, bombs) is refused by line.

`Rows` gives random access to the samples of a JSONL file or of one JSON array: it scans the file once for byte
positions and parses a sample only when it is asked for.
"""

import json
import math
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput

from .errors import BadSample

MAX_BYTES = 16 * 1024 * 1024
"""Longest sample in bytes."""
MAX_DEPTH = 100
"""Deepest nesting of lists and objects."""

_BOM = b"\xef\xbb\xbf"
# Strings (also one that the end of the data cuts off, else its every quote would start a new scan), and brackets.
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)


def parse(data: bytes, place: str) -> Any:
    """The value of one JSON text; anything not strictly JSON in UTF-8 is a BadSample at `place`."""
    try:
        if data.startswith(_BOM):
            raise ValueError("starts with a byte order mark; save the file as UTF-8 without BOM")
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        text = data.decode("utf-8")
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be written back
        return value
    except UnicodeDecodeError as error:
        problem = f"invalid UTF-8 at byte {error.start + 1}; save the file as UTF-8"
    except UnicodeEncodeError:
        problem = "holds half of a surrogate pair (\\ud800 .. \\udfff), which is no character"
    except json.JSONDecodeError as error:
        problem = f"not valid JSON: {error.msg} at character {error.pos + 1}"
    except ValueError as error:
        problem = str(error)
    raise BadSample("json", problem, place)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        doubled = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'key "{doubled}" appears twice; keep one')
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number; write null or a number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 100:
        raise ValueError(f"integer of {len(text)} digits is too large")
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
)


def _depth(data: bytes) -> int:
    depth = deepest = 0
    for token in _TOKENS.finditer(data):
        if token[0] in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in b"]}":
            depth -= 1
    return deepest


class Rows:
    """The samples of a `.jsonl` file or of a `.json` array, by number.

    Opened lazily and reopened after pickling, so that it can be handed to worker processes.
    """

    format: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spans = _lines(path) if path.suffix == ".jsonl" else _elements(path)  # (N, 3) start, end, line
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Any:
        start, end, _ = (int(number) for number in self._spans[index])
        if end - start > MAX_BYTES:
            problem = f"longer than {MAX_BYTES >> 20} MiB; keep pictures in files, and one sample on each line"
            raise BadSample("json", problem, self.place(index))
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(start)
        return parse(self._file.read(end - start), self.place(index))

    def outline(self, index: int) -> Any:
        """The row; in a line nothing can be skipped."""
        return self[index]

    def place(self, index: int) -> str:
        """`data.jsonl:12`; in an array, many samples may stand on one line: `data.json:1 (sample 12)`."""
        line = f"{self.path}:{self._spans[index][2]}"
        return line if self.path.suffix == ".jsonl" else f"{line} (sample {index + 1})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _lines(path: Path) -> NDArray[np.int64]:
    """Where the non-empty lines are: (N, 3) of start, end, line number."""
    spans: list[tuple[int, int, int]] = []
    start = position = number = 0
    with path.open("rb") as file:
        while piece := file.readline(MAX_BYTES):  # a longer line comes in several pieces
            position += len(piece)
            if piece.endswith(b"\n") or len(piece) < MAX_BYTES:
                number += 1
                if position - start > len(piece) or not piece.isspace():
                    spans.append((start, position - len(piece) + len(piece.rstrip()), number))
                start = position
        if position > start:
            spans.append((start, position, number + 1))
    return np.array(spans, np.int64).reshape(-1, 3)


def _elements(path: Path) -> NDArray[np.int64]:
    """Where the elements of one top-level JSON array are: (N, 3) of start, end, line number."""
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty; expected a JSON array of samples.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        spans = list(_split_array(data, path))
    return np.array(spans, np.int64).reshape(-1, 3)


def _split_array(data: mmap.mmap, path: Path) -> Iterator[tuple[int, int, int]]:
    depth, start, line, counted = 0, 0, 1, 0
    for token in _TOKENS.finditer(data):
        mark, end = token[0], token.start()
        if depth == 0 and (start or mark != b"[" or data[:end].strip()):
            break  # text before or after the one array
        if mark in (b"[", b"{"):
            depth += 1
            if depth == 1:
                start = token.end()
        elif mark in (b"]", b"}"):
            depth -= 1
        if (mark == b"," and depth == 1) or (mark == b"]" and depth == 0):
            element = data[start:end]
            if mark == b"," or element.strip():
                first = end - len(element.lstrip())
                line += data[counted:first].count(b"\n")
                counted = first
                yield first, end, line
            start = token.end()
    if depth or not start or data[start:].strip():
        raise BadInput(f"{path}: not one complete JSON array of samples; for one sample per line name the file .jsonl.")
