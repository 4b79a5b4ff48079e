"""Strict JSON: what the standard library lets pass (NaN, doubled keys, half surrogates, bombs) is refused by line.

`Rows` gives random access to the samples of a JSONL file or of one JSON array: it scans the file once, in pieces, for
byte positions (16 bytes a sample) and parses a sample only when it is asked for.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic_core import from_json, to_json

from qvl_core.errors import BadInput

from .errors import BadSample
from .reader import Reader
from .spans import MAX_BYTES, Spans

MAX_DEPTH = 100
"""Deepest nesting of lists and objects."""

_BOM = b"\xef\xbb\xbf"
_MARKS = {
    _BOM: "starts with a byte order mark",
    b"\xff\xfe": "is UTF-16",
    b"\xfe\xff": "is UTF-16",
}
_PIECE = 1 << 18  # bytes of an array that are scanned at a time
# Strings (also one that the end of the data cuts off, else its every quote would start a new scan), and brackets.
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
# Over whole strings and everything else up to the next bracket; in the array itself also up to the next comma.
_TO_BRACKET, _TO_COMMA = (
    re.compile(rb'%b(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"%b)*+' % (other, other), re.DOTALL)
    for other in (rb'[^"\[\]{}]*+', rb'[^"\[\]{},]*+')
)
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_KEY = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")\s*:', re.DOTALL)
_SPACE = re.compile(rb"[ \t\n\r\v\f]*+")


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


def parse_written(data: bytes, place: str) -> Any:
    """As `parse`, and faster for what our own writers wrote with `to_json`.

    A text that comes out of its value again as it went in has no key twice, no NaN, and all else that is strict.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        with suppress(ValueError):
            value = from_json(data, allow_inf_nan=False)
            if to_json(value) == data:
                return value
    return parse(data, place)


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
    """The samples of a file with one on each line, or of one JSON array, by number.

    array   whether the file is one array; default: what its suffix says (.jsonl has lines, all else an array)

    Picklable, so that it can be handed to worker processes.
    """

    format: str | None = None

    def __init__(self, path: Path, array: bool | None = None) -> None:
        self.path = path
        self._array = path.suffix != ".jsonl" if array is None else array
        self._reader = Reader(path)
        self._spans = _elements(path) if self._array else _lines(path)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Any:
        start, length, _ = self._spans[index]
        if length > MAX_BYTES:
            problem = f"longer than {MAX_BYTES >> 20} MiB; keep pictures in files, and one sample on each line"
            raise BadSample("json", problem, self.place(index))
        return parse(self._reader.read(start, length), self.place(index))

    def raw(self, index: int) -> bytes:
        """The row as it stands in the file; of one that is too long, its beginning."""
        start, length, _ = self._spans[index]
        return self._reader.read(start, length)

    def begins_list(self, index: int) -> bool:
        """Whether a row is a list, by its first bytes."""
        start, length, _ = self._spans[index]
        return self._reader.read(start, min(length, 1024)).lstrip().startswith(b"[")

    def outline(self, index: int) -> Any:
        """The row; in a line nothing can be skipped."""
        return self[index]

    def place(self, index: int) -> str:
        """`data.jsonl:12`; in an array, many samples may stand on one line: `data.json:1 (sample 12)`."""
        line = f"{self.path}:{self._spans[index][2]}"
        return f"{line} (sample {index + 1})" if self._array else line


def _lines(path: Path) -> Spans:
    """Where the non-empty lines are."""
    spans = Spans()
    start = position = number = 0
    with path.open("rb") as file:
        while piece := file.readline(MAX_BYTES):  # a longer line comes in several pieces
            position += len(piece)
            if piece.endswith(b"\n") or len(piece) < MAX_BYTES:
                number += 1
                if position - start > len(piece) or not piece.isspace():
                    spans.append(start, position - len(piece) + len(piece.rstrip()), number)
                start = position
        if position > start:
            spans.append(start, position, number + 1)
    return spans


def _elements(path: Path) -> Spans:
    """Where the elements of one top-level JSON array are."""
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty; expected a JSON array of samples.")
    spans = Spans()
    with path.open("rb") as file:
        for span in _split(file, path):
            spans.append(*span)
    return spans


def layout(path: Path) -> Literal["lines", "array", "object"]:
    """How the samples stand in a file, which its suffix need not say: people name either kind either way.

    A .jsonl file that begins with a line "[" is an array; a .json file of several lines, each an object, has lines.
    """
    with path.open("rb") as file:
        first = _line(file, 1024)
        if path.suffix == ".jsonl":
            return "array" if first in (b"[", b"[{") else "lines"
        for mark, what in _MARKS.items():
            if first.startswith(mark):
                raise BadInput(f"{path}: {what}; save the file as UTF-8 without BOM.")
        if not first.startswith(b"{"):
            return "array"
        file.seek(0)
        return "lines" if _line(file, MAX_BYTES).endswith(b"}") and _line(file, 1024).startswith(b"{") else "object"


def _line(file: BinaryIO, most: int) -> bytes:
    """The next line that holds anything, or its first `most` bytes, stripped; empty at the end."""
    while line := file.readline(most):
        if not line.isspace():
            return line.strip()
    return b""


def object_keys(path: Path) -> list[str]:
    """The keys of a file that is one JSON object, which is read in pieces. Raises BadInput."""
    keys = []
    with path.open("rb") as file, path.open("rb") as again:
        for start, end, _ in _split(file, path, b"{}"):
            again.seek(start)
            if key := _KEY.match(again.read(min(end - start, 1000))):
                keys.append(str(parse(key[1], str(path))))
    return keys


def _split(file: BinaryIO, path: Path, brackets: bytes = b"[]") -> Iterator[tuple[int, int, int]]:
    """Start, end and line of what stands between the commas of the one array or object that a file holds.

    It is scanned piece by piece: nothing but the position is carried from one to the next.
    """
    what = "array of samples; for one sample per line name the file .jsonl" if brackets == b"[]" else "object"
    broken = BadInput(f"{path}: not one complete JSON {what}.")
    opening, closing = brackets[:1], brackets[1:]
    depth, line = 0, 1
    in_string = closed = comma = False
    element: tuple[int, int] | None = None  # start and line of the one at hand, once its first byte is seen
    data, base = b"", 0  # what is scanned, and where it stands in the file
    position = 0
    while piece := file.read(_PIECE):
        base += position
        data = data[position:] + piece  # at most a backslash whose character is in this piece
        position = counted = 0
        while position < len(data):
            if in_string:
                position = _skip(_IN_STRING, data, position)
                if data[position : position + 1] != b'"':
                    break
                position, in_string = position + 1, False
            if element is None:
                position = _skip(_SPACE, data, position)
                if position == len(data):
                    break
                if closed or (depth == 0 and data[position : position + 1] != opening):
                    raise broken
                if depth == 1:
                    line += data.count(b"\n", counted, position)
                    counted = position
                    element = base + position, line
            if depth > 0:
                position = _skip(_TO_COMMA if depth == 1 else _TO_BRACKET, data, position)
            mark = data[position : position + 1]
            if mark in (b"[", b"{"):
                depth += 1
            elif mark in (b"]", b"}"):
                depth -= 1
                closed = depth == 0
            elif mark == b'"':
                in_string = True
            if element is not None and (closed or (mark == b"," and depth == 1)):
                if closed and mark != closing:
                    raise broken
                if not closed or element[0] < base + position:
                    yield element[0], base + position, element[1]
                elif comma:
                    raise BadInput(f"{path}:{element[1]}: nothing stands behind the last comma; remove the comma.")
                element, comma = None, True
            position = min(position + 1, len(data))
        line += data.count(b"\n", counted)
    if not closed:
        raise broken


def _skip(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """Where the pattern, which may be empty, ends."""
    match = pattern.match(data, position)
    return match.end() if match else position
