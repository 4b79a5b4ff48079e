"""Tar archives as rows in any order: an index of offsets, so that a sample is read without what stands before it.

Members whose paths are the same up to the first dot of the name are one row, as in WebDataset: of `cats/0012.jpg` and
`cats/0012.txt` it is `{"__key__": "cats/0012", "jpg": bytes, "txt": bytes}`. In archives written here `KEY.json` is the
sample (`qvl.sample/1`) and `KEY.0.jpg` the bytes of its media 0.

The index is built once from the headers and kept beside the archive in a hidden file (`.train.tar.index`), which has
the time of the archive and counts while both are equal. Where it cannot be written it stays in memory.
"""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from .errors import BadSample
from .json_lines import parse_written
from .reader import Reader
from .sample import Sample
from .sniff import ending
from .spans import MAX_BYTES
from .tar_index import load
from .tar_members import name_problem

TOGETHER = 1 << 20
"""Bytes of a row, headers between its members included, that are read at once."""

_ENDINGS = (
    {f"image/{name}": name for name in ("png", "webp", "gif", "bmp", "tiff")}
    | {"image/jpeg": "jpg"}
    | {
        "video/mp4": "mp4",
        "video/webm": "webm",
    }
)


class Rows:
    """The samples of a tar archive by number; the format is `qvl` if it was written here, else `wds`.

    Reopened after pickling.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = Reader(path)
        self._index = load(path)
        self.format: str | None = self._index.format

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._row(index, outline=False)

    def outline(self, index: int) -> dict[str, Any]:
        """The row with empty bytes instead of the pictures whose size the sample states."""
        return self._row(index, outline=True)

    def place(self, index: int) -> str:
        """`train.tar:cats/0012`; a row that is refused, whose key may come twice, with its number behind."""
        number = f" (sample {index + 1})" if index in self._index.problems else ""
        return f"{self.path}:{self._index.key(index)}{number}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": self._index if self._index.in_memory else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._index is None:
            self._reader.check()
            self._index = load(self.path)

    def _row(self, index: int, outline: bool) -> dict[str, Any]:
        if problem := self._index.problems.get(index):
            raise BadSample(*problem, self.place(index))
        members = self._index.members(index)
        if self.format != "qvl":
            read = self._reading(members)
            return {"__key__": self._index.key(index)} | {kind: read(*span) for kind, span in members.items()}
        place = self.place(index)
        if "json" not in members:
            raise BadSample("tar_member", 'has no member ".json" with the sample; write the archive anew', place)
        read = self._reader.read if outline else self._reading(members)
        start, size = members.pop("json")
        if size > MAX_BYTES:
            raise BadSample("json", f"a sample longer than {MAX_BYTES >> 20} MiB", place)
        row = parse_written(read(start, size), place)
        listed = row.get("media") if isinstance(row, dict) else None
        for kind, span in members.items():
            media = _entry(listed, kind.split(".")[0])
            if media is None or "bytes" in media:
                raise BadSample("tar_member", f'the member ".{kind}" belongs to none of the media of the sample', place)
            stated = outline and media.get("kind") == "image" and media.get("width") and media.get("height")
            media["bytes"] = b"" if stated else read(*span)
        return row

    def _reading(self, members: Mapping[str, tuple[int, int]]) -> Callable[[int, int], bytes]:
        """How the members of a row are read: those that stand together at once, since each reading costs as much."""
        (first, _), *_, (last, length) = (*members.values(), *members.values())  # in the order of the archive
        if last + length - first > TOGETHER:
            return self._reader.read
        data = self._reader.read(first, last + length - first)
        return lambda start, size: data[start - first : start - first + size]


def _entry(listed: Any, number: str) -> dict[str, Any] | None:
    """The entry of a list that the number in the name of a member names; None if there is none."""
    counts = isinstance(listed, list) and number.isascii() and number.isdigit() and int(number[:9]) < len(listed)
    entry = listed[int(number[:9])] if counts else None
    return entry if isinstance(entry, dict) else None


class Writer:
    """Writes samples to one archive: the sample without bytes, then its media; a context manager.

    Members are numbered, so that the same samples give the same archive.
    """

    def __init__(self, path: Path) -> None:
        self._file = _Archive(path)
        self._count = 0

    def write(self, sample: Sample) -> None:
        key = f"{self._count:08d}"
        bare = tuple(media.model_copy(update={"bytes": None}) for media in sample.media)
        self._file.add(f"{key}.json", to_json(sample.model_copy(update={"media": bare}).to_dict()))
        for number, media in enumerate(sample.media):
            if media.bytes is not None:
                self._file.add(f"{key}.{number}.{_ending(media.mime, media.bytes)}", media.bytes)
        self._count += 1

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *rest: object) -> None:
        self._file.close()


class Packer:
    """Writes rows of the format `wds` to one archive: each member of a row is a file; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = _Archive(path)
        self._keys: set[str] = set()

    def write(self, row: Mapping[str, Any]) -> None:
        """Raises BadSample for a key that would not be read again."""
        key = row["__key__"]
        if problem := name_problem(key):
            raise BadSample("tar_member", f"the key {problem}")
        if "." in key.rpartition("/")[2]:
            raise BadSample("tar_member", f"the key {key!r} has a dot in its name, where the name of a member ends")
        if key in self._keys:
            raise BadSample("tar_double", f"the key {key!r} was written before; give each sample a key of its own")
        self._keys.add(key)
        for kind, value in row.items():
            if kind != "__key__" and value is not None:
                self._file.add(f"{key}.{kind}", _content(value))

    def __enter__(self) -> "Packer":
        return self

    def __exit__(self, *rest: object) -> None:
        self._file.close()


class _Archive:
    """An archive whose members have neither time nor owner, so that the same contents give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._file = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._file.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        self._file.close()


def _content(value: Any) -> bytes:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        value = value["bytes"]  # a picture as `datasets` has it
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else to_json(value)


def _ending(mime: str | None, content: bytes) -> str:
    return _ENDINGS.get(mime or "") or ending(content, "dat")
