"""COCO files: one JSON object with `images`, `annotations` and `categories`, read picture by picture.

The file is scanned once, piece by piece, for where each picture and each annotation stands; they are parsed when they
are asked for. A row is one picture with its annotations (in their order) and the categories that these name:

    {"image": {...}, "annotations": [...], "categories": [...], "license": {...}, "dataset": {...}}

`license` is there if the picture names one of the file's `licenses`. `dataset` is in the first row only and holds the
file's other parts, all categories among them, so that `coco_writer` can write all that was read.
"""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from qvl_core.errors import BadInput

from .json_lines import parse
from .reader import Reader
from .spans import MAX_BYTES

_PIECE = 1 << 20
_MAX_PART = 256 << 20  # bytes of a part that is read as a whole, such as the categories
_LISTS = ("images", "annotations")
_NUMBER = frozenset("0123456789.eE+-")
_SPACE = " \t\n\r"


def is_coco(path: Path) -> bool:
    """Whether a JSON file looks like a COCO file from its first bytes: an object that begins with one of its parts."""
    with path.open("rb") as file:
        head = file.read(_PIECE).lstrip()
    return head.startswith(b"{") and any(b'"%b"' % name.encode() in head for name in (*_LISTS, "categories"))


class Rows:
    """The pictures of a COCO file by number. Picklable. Raises BadInput."""

    format: str | None = "coco"

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = path
        self._reader = Reader(path)
        with path.open("rb") as file:
            scan = _Scan(file, path)
            scan.run()
        self._images, self._annotations = scan.spans["images"], scan.spans["annotations"]
        self._ids = scan.ids
        self.head = scan.head
        self._categories = self._by_id("categories")
        self._licenses = self._by_id("licenses")
        numbers = {identity: number for number, identity in enumerate(scan.ids)}
        if len(numbers) < len(scan.ids):
            doubled = next(identity for n, identity in enumerate(scan.ids) if numbers[identity] != n)
            raise BadInput(f"{path}: two images have the id {doubled!r}; give each its own.")
        if lost := [owner for owner in scan.owners if owner not in numbers]:
            problem = f"{len(lost)} annotations name images that are not there, such as {lost[0]!r}; remove them"
            raise BadInput(f"{path}: {problem}.")
        owners = np.array([numbers[owner] for owner in scan.owners], np.int64)
        self._order = np.argsort(owners, kind="stable")
        self._starts = np.searchsorted(owners[self._order], np.arange(len(scan.ids) + 1))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.place(index)
        image = self._read(self._images, index, place)
        mine = self._order[self._starts[index] : self._starts[index + 1]]
        annotations = [self._read(self._annotations, int(number), place) for number in mine]
        used = dict.fromkeys(_key(annotation.get("category_id")) for annotation in annotations)
        row = {
            "image": image,
            "annotations": annotations,
            "categories": [self._categories[category] for category in used if category in self._categories],
        }
        if (license := _key(image.get("license"))) in self._licenses:
            row["license"] = self._licenses[license]
        return row | ({"dataset": self.head} if index == 0 else {})

    def outline(self, index: int) -> dict[str, Any]:
        return self[index]

    def place(self, index: int) -> str:
        """`instances.json (image 397133)`, by the id of the picture; a text in quotes, without slashes."""
        identity = self._ids[index]
        name = f'"{quote(identity, safe=" ")}"' if isinstance(identity, str) else identity
        return f"{self.path} (image {name})"

    def _read(self, spans: "_Spans", index: int, place: str) -> dict[str, Any]:
        value: dict[str, Any] = parse(self._reader.read(spans.starts[index], spans.lengths[index]), place)
        return value

    def _by_id(self, part: str) -> dict[Any, Any]:
        """The entries of a list in the head by their ids."""
        entries = self.head.get(part, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BadInput(f'{self.path}: "{part}" is no list of objects.')
        found = {entry["id"]: entry for entry in entries if _key(entry.get("id")) is not None}
        if part == "categories" and len(found) < len(entries):
            raise BadInput(f'{self.path}: each of the "categories" needs an id of its own.')
        return found


class _Spans:
    """Start and length of each entry, in bytes."""

    def __init__(self) -> None:
        self.starts, self.lengths = array("q"), array("I")


class _Scan:
    """One pass over a COCO file, whose bytes are looked at as Latin-1: a character is a byte."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.text, self.base, self.at = "", 0, 0  # what is in memory, where it stands in the file, and where we are
        self.spans = {name: _Spans() for name in _LISTS}
        self.ids: list[Any] = []  # of the images
        self.owners: list[Any] = []  # image ids of the annotations
        self.head: dict[str, Any] = {}
        self.decode = json.JSONDecoder().raw_decode

    def run(self) -> None:
        self.expect("{")
        seen = set()
        for _ in self.entries("}"):
            key, _, _ = self.value(MAX_BYTES)
            if not isinstance(key, str):
                raise self.bad("a key that is no text")
            if key in seen:
                raise self.bad(f'"{key}" twice')
            seen.add(key)
            self.expect(":")
            if key in _LISTS:
                self.expect("[")
                for _ in self.entries("]"):
                    self.entry(key)
            else:
                _, start, end = self.value(_MAX_PART)
                self.head[_utf8(key)] = parse(self.read(start, end), f"{self.path}: {_utf8(key)}")
        if self.peek():
            raise self.bad("something behind its end")
        if missing := [name for name in (*_LISTS, "categories") if name not in seen]:
            raise self.bad(f'no "{missing[0]}"')

    def entry(self, part: str) -> None:
        """Note one image or annotation."""
        value, start, end = self.value(MAX_BYTES)
        name = "id" if part == "images" else "image_id"
        identity = value.get(name) if isinstance(value, dict) else None
        if _key(identity) is None:
            raise self.bad(f'an entry of "{part}" without "{name}"')
        (self.ids if part == "images" else self.owners).append(_utf8(identity))
        self.spans[part].starts.append(start)
        self.spans[part].lengths.append(end - start)

    def entries(self, close: str) -> Iterator[None]:
        """Stands before each entry up to the closing bracket, and goes behind it."""
        if self.peek() == close:
            self.at += 1
            return
        while True:
            yield
            mark = self.peek()
            self.at += 1
            if mark == close:
                return
            if mark != ",":
                raise self.bad("a missing comma or bracket")

    def value(self, limit: int) -> tuple[Any, int, int]:
        """The JSON value that stands here, its start and its end in the file."""
        self.peek()
        while True:
            size = max(_PIECE, len(self.text) - self.at)
            try:
                value, end = self.decode(self.text, self.at)
            except ValueError as error:  # perhaps cut off by the end of what is in memory
                if len(self.text) - self.at > limit:
                    raise self.bad(f"an entry longer than {limit >> 20} MiB") from None
                if not self.more(size):
                    raise self.bad(f"no sound JSON ({error})") from None
                continue
            except RecursionError:
                raise self.bad("an entry that is nested too deep") from None
            length = end - self.at
            tail = self.text[end : end + 4]
            if len(tail) < 4 and _NUMBER.issuperset(tail) and self.more(size):
                continue  # a number may go on
            start = self.base + self.at
            self.at += length
            return value, start, start + length

    def expect(self, mark: str) -> None:
        if self.peek() != mark:
            raise self.bad(f"no {mark!r} where one is needed")
        self.at += 1

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more(_PIECE):
                return ""

    def more(self, size: int) -> bool:
        """Read on, forgetting what is done with."""
        piece = self.file.read(size)
        self.base += self.at
        self.text = self.text[self.at :] + piece.decode("latin-1")
        self.at = 0
        return bool(piece)

    def read(self, start: int, end: int) -> bytes:
        """Bytes of the file; scanning goes on where it was."""
        here = self.file.tell()
        self.file.seek(start)
        data = self.file.read(end - start)
        self.file.seek(here)
        return data

    def bad(self, problem: str) -> BadInput:
        return BadInput(f"{self.path}: no COCO file: {problem} (near byte {self.base + self.at}).")


def _key(value: Any) -> Any:
    """A value that can be an id, else None."""
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _utf8(value: Any) -> Any:
    return value.encode("latin-1").decode(errors="replace") if isinstance(value, str) else value
