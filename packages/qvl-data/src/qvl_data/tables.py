"""Tables that others wrote, as rows by number: CSV and TSV, Parquet, Arrow. Every row is `{column: value}`.

Cells of CSV and TSV are text. In Parquet and Arrow they are Python values (structs are dicts, pictures bytes or
`{"bytes", "path"}`, as in the `Image` columns of the Hugging Face hub). What a column means is for the format to know.
"""

import csv
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from qvl_core.errors import BadInput, first_line

from .errors import BadSample
from .reader import Reader
from .row_groups import RowGroups
from .spans import MAX_BYTES, Spans

if TYPE_CHECKING:
    import pyarrow as pa

_BOM = b"\xef\xbb\xbf"


class TextRows:
    """The rows of a CSV (RFC 4180) or TSV file in UTF-8, whose first line names the columns. Picklable.

    A row may go over several lines in quotes; its place is its first line. Raises BadInput if the columns are not
    named, or one twice; a row with too few or too many cells, an unclosed quote or bytes that are no UTF-8 is a
    BadSample.
    """

    format: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._delimiter = "\t" if path.suffix == ".tsv" else ","
        self._reader = Reader(path)
        with path.open("rb") as file:
            file.seek(len(_BOM) if file.read(len(_BOM)) == _BOM else 0)
            self._spans = Spans()
            for span in _records(file, self._delimiter):
                self._spans.append(*span)
        if not len(self._spans):
            raise BadInput(f"{path}: the file is empty; its first line should name the columns.")
        try:
            self.columns = self._cells(0)
        except BadSample as error:
            raise BadInput(str(error)) from None
        if double := next((name for name in self.columns if self.columns.count(name) > 1), None):
            raise BadInput(f"{self._line(0)}: has two columns {double!r}; rename one.")

    def __len__(self) -> int:
        return len(self._spans) - 1

    def __getitem__(self, index: int) -> dict[str, str]:
        cells = self._cells(index + 1)
        if len(cells) != len(self.columns):
            problem = f"{len(cells)} cells under {len(self.columns)} columns; quote cells that hold {self._delimiter!r}"
            raise BadSample("table", problem, self.place(index))
        return dict(zip(self.columns, cells, strict=True))

    def outline(self, index: int) -> dict[str, str]:
        """The row."""
        return self[index]

    def place(self, index: int) -> str:
        return self._line(index + 1)

    def _line(self, record: int) -> str:
        return f"{self.path}:{self._spans[record][2]}"

    def _cells(self, record: int) -> list[str]:
        start, length, _ = self._spans[record]
        if length > MAX_BYTES:
            problem = f"a row longer than {MAX_BYTES >> 20} MiB; close its quotes, and keep pictures in files"
            raise BadSample("table", problem, self._line(record))
        try:
            lines = self._reader.read(start, length).decode().split("\n")
            return next(_reader((f"{line}\n" for line in lines), self._delimiter))
        except UnicodeDecodeError as error:
            problem = f"invalid UTF-8 at byte {error.start + 1} of the row; save the file as UTF-8"
        except csv.Error as error:
            bare = "new-line character" in str(error)
            why = "a line ends in a bare carriage return; save the file with line feeds" if bare else str(error)
            problem = f"cannot be read as a row of a table: {why}"
        raise BadSample("table", problem, self._line(record))


def _records(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, int, int]]:
    """Start, end and first line of each record; a line that nothing stands in is none.

    What cannot be read as a record is one by itself, up to where the reader gave up.
    """
    start = end = file.tell()
    number = 0  # lines so far

    def lines() -> Iterator[str]:
        nonlocal end, number
        while piece := file.readline(MAX_BYTES):
            end, number = end + len(piece), number + 1
            whole = piece.endswith(b"\n") or len(piece) < MAX_BYTES
            while not whole:
                piece = file.readline(MAX_BYTES)
                end, whole = end + len(piece), piece.endswith(b"\n") or len(piece) < MAX_BYTES
                piece = b'""\n'  # refused for its length when it is read
            yield piece.decode("latin-1")  # only quotes and delimiters count here, which are ASCII

    reader = _reader(lines(), delimiter)
    while True:
        line = number + 1
        try:
            cells = next(reader, None)
        except csv.Error:
            cells = [""]
        if cells is None:
            return
        if cells:
            yield start, end, line
        start = end


def _reader(lines: Iterator[str], delimiter: str) -> "Iterator[list[str]]":
    if csv.field_size_limit() < MAX_BYTES:
        csv.field_size_limit(MAX_BYTES)  # of the whole process; pictures in base64 are longer than its 128 KiB
    return csv.reader(lines, delimiter=delimiter, strict=True)


class ParquetRows:
    """The rows of any Parquet file. Bytes are read one by one where their column is plain (see `row_groups`)."""

    format: str | None = None

    def __init__(self, path: Path, groups: RowGroups | None = None) -> None:
        self.path = path
        self._groups = groups or RowGroups(path)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._groups.row(index)
        for leaf in self._groups.bytes_leaves.values():
            self._groups.fill(index, row, leaf)
        return {name: row[name] for name in self._groups.columns}

    def outline(self, index: int) -> dict[str, Any]:
        """The row: it says no sizes."""
        return self[index]

    def place(self, index: int) -> str:
        return f"{self.path}:{index + 1}"


class ArrowRows:
    """The rows of an Arrow file or stream, mapped into memory. Reopened after pickling."""

    format: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = Reader(path)
        self._names, self._batches = _batches(path)
        self._starts = [0, *accumulate(batch.num_rows for batch in self._batches)]
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = bisect_right(self._starts, index) - 1
        batch, row = self._batches[number], index - self._starts[number]
        try:
            if number not in self._checked:
                batch.validate(full=True)  # a damaged offset would be followed out of the file
                self._checked.add(number)
            columns = zip(self._names, batch.columns, strict=True)
            return {name: column[row].as_py(maps_as_pydicts="strict") for name, column in columns}
        except _arrow_errors() as error:
            raise BadSample(
                "table", f"cannot be read ({first_line(error)}); write the file anew", self.place(index)
            ) from None

    def outline(self, index: int) -> dict[str, Any]:
        """The row: it says no sizes."""
        return self[index]

    def place(self, index: int) -> str:
        return f"{self.path}:{index + 1}"

    def __getstate__(self) -> dict[str, Any]:
        return {"reader": self._reader}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["reader"].check()
        self.__init__(state["reader"].path)  # type: ignore[misc]


def _batches(path: Path) -> "tuple[list[str], list[pa.RecordBatch]]":
    """The columns and the record batches of an Arrow file or stream."""
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path))
        try:
            file = pa.ipc.open_file(source)
            names, batches = file.schema.names, [file.get_batch(number) for number in range(file.num_record_batches)]
        except pa.ArrowInvalid:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            names, batches = stream.schema.names, list(stream)
    except _arrow_errors() as error:
        raise BadInput(f"{path}: not a readable Arrow file ({first_line(error)}).") from None
    if double := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"{path}: has two columns {double!r}; rename one.")
    return names, batches


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return pa.ArrowException, OSError, ValueError, OverflowError
