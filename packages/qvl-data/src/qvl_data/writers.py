"""Writing samples into one file, whose suffix says what it becomes: Parquet, tar, JSONL, or one COCO file (.json).

    with open_writer(Path("train.parquet")) as out:
        for sample in dataset:
            out.write(sample)

Pictures go along: inside Parquet and tar files, beside a JSONL file; videos beside all of them. The same samples always
give the same bytes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from qvl_core.errors import BadInput

from .carry import beside, embedded, enclosed
from .errors import BadSample, placed
from .formats import get_format
from .formats.kept import plain
from .groups import group_of
from .job import complete
from .sample import Sample

SUFFIXES = (".parquet", ".tar", ".jsonl")


class Writer(Protocol):
    def write(self, sample: Sample) -> None:
        """Add one sample. Raises BadSample if its pictures cannot be read, or the format cannot say it."""
        ...


@contextmanager
def open_writer(file: Path, format: str = "qvl", columns: Mapping[str, str] | None = None) -> Iterator[Writer]:
    """A writer of one data file, which gets its name once all is written; after an error there is none.

    format   name of a format; Parquet holds qvl samples, tar these or wds
    columns  columns of the data by field of the format, where they should have other names

    What was called `file` is replaced. Raises BadInput.
    """
    check_target(file, format)
    with complete(file) as part:
        if file.suffix == ".jsonl":
            with part.open("wb") as out:
                lines = _Lines(out, format, columns, file.parent)
                yield lines
                lines.end_group()
            return
        if file.suffix == ".json":
            from .coco_writer import Writer as Coco

            with Coco(part, file) as coco:
                yield _Beside(coco, file.parent)
            return
        from . import parquet, tar

        if format == "wds":
            with tar.Packer(part) as packer:
                yield _Enclosing(packer, get_format(format, columns))
            return
        with (parquet.Writer if file.suffix == ".parquet" else tar.Writer)(part) as writer:
            yield _Embedding(writer, file.parent)


def write(samples: Iterable[Sample], file: Path, format: str = "qvl") -> int:
    """Write samples to one file, in place of what is there; returns how many. Raises BadSample, BadInput."""
    count = 0
    with open_writer(file, format) as writer:
        for sample in samples:
            writer.write(sample)
            count += 1
    return count


def suffix_for(format: str) -> str:
    """Where samples of a format go unless said otherwise."""
    return {"qvl": ".parquet", "wds": ".tar"}.get(format, ".jsonl")


def check_target(file: Path, format: str = "qvl") -> None:
    """Raise BadInput unless samples of `format` can be written to a file of this name."""
    if file.suffix == ".json" and format == "coco":
        return
    if file.suffix not in SUFFIXES:
        raise BadInput(f"{file}: unknown kind of file; write {', '.join(SUFFIXES)}.")
    if format == "wds":
        if file.suffix != ".tar":
            raise BadInput(f"{file}: wds is written into archives; name the file .tar.")
    elif file.suffix != ".jsonl" and format != "qvl":
        kind = {".parquet": "Parquet", ".tar": "a tar"}[file.suffix]
        raise BadInput(f"{file}: {kind} holds qvl samples; for {format} name the file .jsonl.")


class _Lines:
    """One row of the format on each line; pictures and videos are laid into `folder`.

    What was packed together in one row (`qvl_data.groups`) comes into one row again.
    """

    def __init__(self, out: BinaryIO, format: str, columns: Mapping[str, str] | None, folder: Path) -> None:
        self._out, self._name, self._folder = out, format, folder
        self._format = get_format(format, columns)
        self._group: str | None = None

    def write(self, sample: Sample) -> None:
        with placed(sample):
            line = _line(self._format.write(beside(sample, self._folder)))
        group = group_of(sample, self._name)
        if group is None:
            self.end_group()
            self._out.write(line + b"\n")
        elif group == self._group:
            self._out.write(b", " + line)
        else:
            self.end_group()
            self._out.write(b"[" + line)
        self._group = group

    def end_group(self) -> None:
        if self._group is not None:
            self._out.write(b"]\n")
            self._group = None


def _line(row: Any) -> bytes:
    """A row as JSON. Raises BadSample for what only tables can hold."""
    try:
        try:
            return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError):
            return json.dumps(plain(row), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BadSample("not_expressible", f"a line of JSON cannot hold this row ({error}); keep it as qvl") from None


class _Beside:
    """Pictures are laid into `folder`."""

    def __init__(self, writer: Writer, folder: Path) -> None:
        self._writer, self._folder = writer, folder

    def write(self, sample: Sample) -> None:
        self._writer.write(beside(sample, self._folder))


class _Embedding:
    """Pictures go inside, each with its size; videos are laid into `folder`."""

    def __init__(self, writer: Writer, folder: Path) -> None:
        self._writer, self._folder = writer, folder

    def write(self, sample: Sample) -> None:
        self._writer.write(embedded(sample, self._folder))


class _Enclosing:
    """Pictures and videos become members of an archive, as the format `wds` names them."""

    def __init__(self, packer: Any, format: Any) -> None:
        self._packer, self._format = packer, format

    def write(self, sample: Sample) -> None:
        with placed(sample):
            self._packer.write(self._format.write(enclosed(sample)))
