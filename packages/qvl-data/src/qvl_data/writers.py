"""Writing samples into one file, whose suffix says what it becomes: Parquet, tar, JSONL, a JSON array or one COCO file
(.json), and for the format flat CSV and TSV.

    with open_writer(Path("train.parquet")) as out:
        for sample in dataset:
            out.write(sample)

Pictures go along: inside Parquet and tar files, beside all others; videos beside all of them. Columns that had other
names where a sample was read (`--map`) get these again. The same samples always give the same bytes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from qvl_core.errors import BadInput

from .carry import beside, embedded, enclosed
from .errors import BadSample, placed
from .formats import Format, get_format
from .formats.common import fitting, unpack_extra
from .formats.kept import plain
from .groups import group_of
from .job import complete
from .sample import Sample

SUFFIXES = (".parquet", ".tar", ".jsonl", ".json")
TEXT_TABLES = (".csv", ".tsv")
"""Suffixes for the format flat alone."""
TABLES = ("hf", "flat", "edit", "metaquery", "omniedit")
"""Formats whose rows Parquet holds with their pictures, beside qvl."""


class Writer(Protocol):
    def write(self, sample: Sample) -> None:
        """Add one sample. Raises BadSample if its pictures cannot be read, or the format cannot say it."""
        ...


@contextmanager
def open_writer(file: Path, format: str = "qvl", columns: Mapping[str, str] | None = None) -> Iterator[Writer]:
    """A writer of one data file, which gets its name once all is written; after an error there is none.

    format   name of a format; Parquet holds qvl samples or one of TABLES, tar qvl samples or wds
    columns  columns of the data by field of the format, where they should have other names

    What was called `file` is replaced. Raises BadInput.
    """
    check_target(file, format)
    rows = _Rows(format, columns)
    with complete(file) as part:
        if file.suffix == ".json" and format == "coco":
            from .coco_writer import Writer as Coco

            with Coco(part, file) as coco:
                yield _Beside(coco, file.parent)
        elif file.suffix in (".jsonl", ".json"):
            with part.open("wb") as out:
                lines = _Lines(out, rows, file.parent, file.suffix == ".json")
                yield lines
                lines.end()
        elif file.suffix in TEXT_TABLES or (file.suffix == ".parquet" and format != "qvl"):
            from . import table_writers

            kind = table_writers.ParquetTable if file.suffix == ".parquet" else table_writers.TextTable
            with kind(part, file) as table:
                yield _Table(
                    table, rows, partial(embedded if file.suffix == ".parquet" else beside, folder=file.parent)
                )
        elif format == "wds":
            from . import tar

            with tar.Packer(part) as packer:
                yield _Enclosing(packer, rows)
        else:
            from . import parquet, tar

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
    if file.suffix not in (*SUFFIXES, *TEXT_TABLES):
        known = f"{', '.join(SUFFIXES)}, or for flat {', '.join(TEXT_TABLES)}"
        raise BadInput(f"{file}: unknown kind of file; write {known}.")
    if format == "wds":
        if file.suffix != ".tar":
            raise BadInput(f"{file}: wds is written into archives; name the file .tar.")
        return
    holds = {".parquet": ("qvl", *TABLES), ".tar": ("qvl",)} | dict.fromkeys(TEXT_TABLES, ("flat",))
    if file.suffix in holds and format not in holds[file.suffix]:
        listed = ", ".join(holds[file.suffix])
        raise BadInput(f"{file}: a {file.suffix} file holds {listed}; for {format} name the file .jsonl.")


class _Rows:
    """Samples as rows of a format, whose columns have the names that are given, else those they were read by."""

    def __init__(self, name: str, columns: Mapping[str, str] | None) -> None:
        self.name, self._named = name, bool(columns)
        self._format = get_format(name, columns)
        self._others: dict[tuple[tuple[str, str], ...], Format] = {}

    def of(self, sample: Sample) -> Any:
        """The row of a sample. Raises BadSample."""
        hinted = not self._named and sample.meta.format == self.name and '"columns"' in (sample.extra or "")
        columns = unpack_extra(sample)[1].get("columns") if hinted else None
        return (self._by(columns, sample) if columns else self._format).write(sample)

    def _by(self, columns: Any, sample: Sample) -> Format:
        """The format with its columns as a sample hints. Raises BadSample for a hint that is none."""
        with fitting(sample):
            key = tuple(columns.items())
            if key not in self._others:
                try:
                    self._others[key] = get_format(self.name, dict(key))
                except BadInput as error:
                    raise ValueError(str(error)) from None
            return self._others[key]


class _Lines:
    """One row of the format on each line, or as an array; pictures and videos are laid into `folder`.

    What was packed together in one row (`qvl_data.groups`) comes into one row again.
    """

    def __init__(self, out: BinaryIO, rows: _Rows, folder: Path, array: bool) -> None:
        self._out, self._rows, self._folder = out, rows, folder
        self._before, self._between, self._empty = (b"[\n", b",\n", b"[]\n") if array else (b"", b"\n", b"")
        self._behind = b"\n]\n" if array else b"\n"
        self._group: str | None = None
        self._begun = False

    def write(self, sample: Sample) -> None:
        with placed(sample):
            line = _line(self._rows.of(beside(sample, self._folder)))
        group = group_of(sample, self._rows.name)
        if group is not None and group == self._group:
            self._out.write(b", " + line)
            return
        self._end_group()
        self._out.write(self._between if self._begun else self._before)
        self._out.write(line if group is None else b"[" + line)
        self._group, self._begun = group, True

    def end(self) -> None:
        """All rows are there."""
        self._end_group()
        self._out.write(self._behind if self._begun else self._empty)

    def _end_group(self) -> None:
        if self._group is not None:
            self._out.write(b"]")
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


class _Table:
    """Rows of a table, whose pictures and videos `carry` puts inside or beside."""

    def __init__(self, table: Any, rows: _Rows, carry: Callable[[Sample], Sample]) -> None:
        self._table, self._rows, self._carry = table, rows, carry

    def write(self, sample: Sample) -> None:
        carried = self._carry(sample)
        with placed(sample):
            size = sum(len(media.bytes or b"") for media in carried.media)
            self._table.write(self._rows.of(carried), size)


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

    def __init__(self, packer: Any, rows: _Rows) -> None:
        self._packer, self._rows = packer, rows

    def write(self, sample: Sample) -> None:
        with placed(sample):
            self._packer.write(self._rows.of(enclosed(sample)))
