"""The index of a tar archive: for each row its key, and where each of its members stands.

In memory and on disk it is a few flat arrays: 20 bytes a member, 16 and the key a row. The file is a line of JSON and
the arrays behind it, little-endian; nothing in it is ever executed, and every offset is checked against the archive.
"""

import hashlib
import json
import os
import sys
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from qvl_core.errors import BadInput

from .errors import BadSample
from .json_lines import parse
from .sample import SCHEMA
from .spans import MAX_BYTES
from .tar_members import Member, members

MAX_MEMBER = 1 << 30
"""Largest member in bytes."""
_SCHEMA = "qvl.tar-index/1"
_KINDS = (
    {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "dat"}
    | {"mp4", "webm", "mov", "mkv", "avi", "m4v", "mpg", "mpeg", "wav", "mp3", "flac", "ogg", "m4a", "srt", "vtt"}
    | {"json", "txt", "text", "transcript", "caption", "captions", "csv", "tsv", "xml", "md", "yaml", "url"}
    | {"cls", "cls2", "class", "index", "id", "inx", "count"}
)
_ARRAYS = {"first": "q", "starts": "q", "sizes": "q", "kinds": "I", "key_ends": "q"}


class Index:
    """Rows of an archive and their members.

    format     `qvl` if the archive holds samples, else `wds`
    problems   reason and problem of the rows that must not be read
    in_memory  whether it could not be kept beside the archive
    """

    def __init__(self) -> None:
        self.format = "wds"
        self.problems: dict[int, tuple[str, str]] = {}
        self.in_memory = False
        self._names: list[str] = []  # of all kinds of members
        self._first = array("q", [0])  # first member of each row, and the end
        self._starts, self._sizes, self._kinds = array("q"), array("q"), array("I")
        self._key_ends, self._keys = array("q", [0]), b""

    def __len__(self) -> int:
        return len(self._first) - 1

    def key(self, row: int) -> str:
        return self._keys[self._key_ends[row] : self._key_ends[row + 1]].decode()

    def members(self, row: int) -> dict[str, tuple[int, int]]:
        """Start and size of each member of a row by its name behind the key (`jpg`, `0.jpg`)."""
        return {
            self._names[self._kinds[number]]: (self._starts[number], self._sizes[number])
            for number in range(self._first[row], self._first[row + 1])
        }

    @classmethod
    def build(cls, path: Path) -> "Index":
        """From the headers of the archive. Raises BadInput."""
        index = cls()
        numbers: dict[str, int] = {}  # of the kinds
        rows: dict[str, int] = {}
        keys: list[bytes] = []
        last, seen = "", set[str]()
        for member in members(path):
            key, kind = _split(member.name)
            if not key:
                continue
            if key != last or not keys:
                index._first.append(index._first[-1])
                keys.append(key.encode())
                index._key_ends.append(index._key_ends[-1] + len(keys[-1]))
                if key in rows:
                    index._refuse("tar_double", f"comes again after sample {rows[key] + 1}; give it a key of its own")
                rows.setdefault(key, len(keys) - 1)
                last, seen = key, set()
            if kind in seen:
                index._refuse("tar_double", f'has the member ".{kind}" twice; remove one')
            if problem := member.problem or _unread(member, kind):
                index._refuse("tar_member", problem)
            seen.add(kind)
            index._first[-1] += 1
            index._starts.append(member.start)
            index._sizes.append(member.size)
            index._kinds.append(numbers.setdefault(kind, len(numbers)))
        index._names, index._keys = list(numbers), b"".join(keys)
        index.format = "qvl" if index._holds_samples(path) else "wds"
        return index

    def _refuse(self, reason: str, problem: str) -> None:
        self.problems.setdefault(len(self) - 1, (reason, problem))

    def _holds_samples(self, path: Path) -> bool:
        """Whether the first sound row is a sample as our writer lays it down."""
        row = next((row for row in range(len(self)) if row not in self.problems), None)
        start, size = self.members(row).get("json", (0, 0)) if row is not None else (0, 0)
        if not 0 < size <= MAX_BYTES:
            return False
        with path.open("rb") as file:
            file.seek(start)
            try:
                value = parse(file.read(size), "")
            except BadSample:
                return False
        return isinstance(value, dict) and value.get("schema") == SCHEMA

    def to_bytes(self, size: int) -> bytes:
        """As kept beside an archive of `size` bytes."""
        arrays = {name: getattr(self, f"_{name}") for name in _ARRAYS}
        payload = b"".join(_little(values).tobytes() for values in arrays.values()) + self._keys
        header = {
            "schema": _SCHEMA,
            "archive_bytes": size,
            "format": self.format,
            "names": self._names,
            "problems": {str(row): problem for row, problem in self.problems.items()},
            "lengths": {name: len(values) for name, values in arrays.items()},
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        return json.dumps(header, ensure_ascii=False).encode() + b"\n" + payload

    @classmethod
    def from_bytes(cls, data: bytes, size: int) -> "Index":
        """Raises ValueError, KeyError or TypeError if it is damaged, or that of another archive."""
        line, _, payload = data.partition(b"\n")
        header = json.loads(line)
        if (header["schema"], header["archive_bytes"]) != (_SCHEMA, size):
            raise ValueError("the index of another archive")
        if header["sha256"] != hashlib.sha256(payload).hexdigest():
            raise ValueError("a damaged index")
        index = cls()
        index.format, index._names = str(header["format"]), [str(name) for name in header["names"]]
        index.problems = {int(row): (str(reason), str(text)) for row, (reason, text) in header["problems"].items()}
        position = 0
        for name, kind in _ARRAYS.items():
            values = array(kind)
            end = position + header["lengths"][name] * values.itemsize
            values.frombytes(payload[position:end])
            setattr(index, f"_{name}", _little(values))
            position = end
        index._keys = payload[position:]
        index._check(size)
        return index

    def _check(self, size: int) -> None:
        """Raise ValueError unless every number is one that `build` may have written for an archive of this size."""
        first, starts, sizes, kinds, key_ends = (np.array(getattr(self, f"_{name}")) for name in _ARRAYS)
        sound = (
            len(starts) == len(sizes) == len(kinds)
            and len(first) == len(key_ends) > 0
            and (first[0], first[-1]) == (0, len(starts))
            and (key_ends[0], key_ends[-1]) == (0, len(self._keys))
            and (np.diff(first) >= 0).all()
            and (np.diff(key_ends) >= 0).all()
            and (kinds < len(self._names)).all()
            and (starts >= 0).all()
            and (sizes >= 0).all()
            and (starts <= size - sizes).all()
            and all(0 <= row < len(self) for row in self.problems)
        )
        if not sound:
            raise ValueError("a damaged index")
        self._keys.decode()


def load(path: Path) -> Index:
    """The index of an archive: the one that is kept beside it, or a new one. Raises BadInput."""
    kept = path.with_name(f".{path.name}.index")
    try:
        status = path.stat()
        found = kept.stat()
        if found.st_mtime_ns == status.st_mtime_ns and found.st_size <= status.st_size:
            return Index.from_bytes(kept.read_bytes(), status.st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # none, an old one, or a damaged one
    try:
        status = path.stat()
        index = Index.build(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}).") from None
    aside = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(index.to_bytes(status.st_size))
        os.utime(aside, ns=(status.st_mtime_ns, status.st_mtime_ns))
        os.replace(aside, kept)
    except OSError:
        index.in_memory = True
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return index


def _split(name: str) -> tuple[str, str]:
    """Key and kind of a member; no key for hidden files, which are no data."""
    folder, slash, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), kind.lower()


def _unread(member: Member, kind: str) -> str:
    """Why a plain file is not read; empty if it is."""
    ending = kind.rpartition(".")[2]
    if ending not in _KINDS:
        what = f"of the kind .{ending}" if ending else "without an ending"
        return f"{member.name!r} is a file {what}, which is never read (it may hold code); leave it out of the archive"
    if member.size > MAX_MEMBER:
        return f"{member.name!r} has {member.size >> 20} MiB, more than {MAX_MEMBER >> 20}; make it smaller"
    return ""


def _little(values: "array[Any]") -> "array[Any]":
    """The same array with little-endian numbers, or back."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values
