"""Rows of foreign formats as tables: Parquet, CSV and TSV.

Which columns there are, and of what type, is known once the last row is there: rows wait on the disk until then, in a
file without a name, and come out in their order. The same rows give the same bytes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from qvl_core.errors import BadInput, first_line

from .errors import BadSample
from .formats.kept import plain
from .parquet import GROUP_BYTES, GROUP_ROWS, open_file

if TYPE_CHECKING:
    import pyarrow as pa


class TextTable:
    """Writes rows of texts as CSV (RFC 4180), or as TSV by the suffix of `name`; a context manager.

    Numbers and dates become text, null an empty cell, as does a column that a row does not have.
    """

    def __init__(self, path: Path, name: Path) -> None:
        self._out, self._waiting = path.open("wb"), TemporaryFile()  # noqa: SIM115
        self._delimiter = "\t" if name.suffix == ".tsv" else ","
        self._columns: dict[str, None] = {}

    def write(self, row: Mapping[str, Any], size: int = 0) -> None:
        """Add a row. Raises BadSample for what is no text."""
        cells = {column: _cell(column, value) for column, value in row.items()}
        self._columns |= dict.fromkeys(cells)
        self._waiting.write(json.dumps(cells).encode() + b"\n")

    def __enter__(self) -> "TextTable":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._out, self._waiting:
            if kind is not None or not self._columns:
                return
            self._line(self._columns)
            self._waiting.seek(0)
            for line in self._waiting:
                cells = json.loads(line)
                self._line(cells.get(column, "") for column in self._columns)

    def _line(self, cells: Any) -> None:
        marks = ('"', "\n", "\r", self._delimiter)
        quoted = (
            '"{}"'.format(cell.replace('"', '""')) if any(mark in cell for mark in marks) else cell for cell in cells
        )
        self._out.write(self._delimiter.join(quoted).encode() + b"\n")


def _cell(column: str, value: Any) -> str:
    value = plain(value)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    problem = f'"{column}" is {type(value).__name__}, and a cell of CSV holds one text; write .jsonl or .parquet'
    raise BadSample("not_expressible", problem)


class ParquetTable:
    """Writes rows to one Parquet file, which messages call `name`; a context manager.

    A column has one type. What only some rows or objects have is null in the others, as is an empty text among values
    that are no texts (no picture).
    """

    def __init__(self, path: Path, name: Path) -> None:
        import pyarrow as pa

        self._path, self._name = path, name
        self._waiting = TemporaryFile()  # noqa: SIM115
        self._type: Any = pa.struct([])
        self._unsaid: set[str] = set()  # columns in which an empty text stands
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def write(self, row: Mapping[str, Any], size: int = 0) -> None:
        """Add a row with `size` bytes of pictures. Raises BadSample for what its columns cannot hold."""
        import pyarrow as pa

        unsaid = {column for column, value in row.items() if isinstance(value, str) and not value}
        said = {column: None if column in unsaid else value for column, value in row.items()}
        try:
            common = _common(self._type, pa.infer_type([said]), "")
            pa.array([said], common)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            problem = f"a column of Parquet holds values of one type ({first_line(error)}); write .jsonl"
            raise BadSample("not_expressible", problem) from None
        self._type = common
        self._unsaid |= unsaid
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._put_by()

    def __enter__(self) -> "ParquetTable":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._waiting:
            if kind is None:
                self._put_by()
                self._finish()

    def _put_by(self) -> None:
        """Let the rows at hand wait on the disk."""
        import pyarrow as pa

        if self._rows:
            table = self._table(self._rows)
            with pa.ipc.new_stream(pa.PythonFile(self._waiting, "w"), table.schema) as out:
                out.write_table(table)
        self._rows, self._bytes = [], 0

    def _finish(self) -> None:
        if hollow := _hollow(self._type, ""):
            raise BadInput(
                f"{self._name}: {hollow} holds only objects without keys, which Parquet cannot; write .jsonl."
            )

        with open_file(self._path, self._schema()) as out:
            for table in self._put_by_tables():
                whole = table if table.schema == out.schema else self._table(table.to_pylist())
                out.write_table(whole, row_group_size=GROUP_ROWS)

    def _put_by_tables(self) -> "Iterator[pa.Table]":
        import pyarrow as pa

        end = self._waiting.tell()
        self._waiting.seek(0)
        source = pa.PythonFile(self._waiting, "r")
        while self._waiting.tell() < end:
            with pa.ipc.open_stream(source) as stream:
                yield stream.read_all()

    def _schema(self) -> "pa.Schema":
        """The columns so far; one with nothing but empty texts holds texts."""
        import pyarrow as pa

        return pa.schema(
            {
                field.name: pa.string() if field.name in self._unsaid and pa.types.is_null(field.type) else field.type
                for field in self._type
            }
        )

    def _table(self, rows: list[Mapping[str, Any]]) -> "pa.Table":
        """Rows as a table with the columns so far. Raises BadInput for a number that their types would change."""
        import pyarrow as pa

        schema = self._schema()
        no_texts = {column for column in self._unsaid if not pa.types.is_string(schema.field(column).type)}
        if no_texts:
            rows = [{column: _null(value, column in no_texts) for column, value in row.items()} for row in rows]
        try:
            return pa.Table.from_pylist(rows, schema)
        except (pa.ArrowException, OverflowError) as error:
            raise BadInput(f"{self._name}: cannot be written as Parquet ({first_line(error)}); write .jsonl.") from None


def _null(value: Any, unsaid: bool) -> Any:
    return None if unsaid and value == "" else value


def _common(one: "pa.DataType", other: "pa.DataType", where: str) -> "pa.DataType":
    """The type that holds values of both; whole numbers beside fractions are fractions. Raises TypeError."""
    import pyarrow as pa

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            inside = f"{where}.{field.name}" if where else field.name
            fields[field.name] = _common(fields.get(field.name, pa.null()), field.type, inside)
        return pa.struct(fields)
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_common(one.value_type, other.value_type, where))
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    raise TypeError(f"{where}: {one} and {other}"[:200])


def _hollow(kind: "pa.DataType", where: str) -> str:
    """Where a type holds objects without keys; empty if nowhere."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        return _hollow(kind.value_type, where)
    if not pa.types.is_struct(kind):
        return ""
    if kind.num_fields == 0 and where:
        return where
    inside = (_hollow(field.type, f"{where}.{field.name}" if where else field.name) for field in kind)
    return next(filter(None, inside), "")
