"""The rows of any Parquet file in any order, each byte value (a picture) by itself where its column is plain.

What is not bytes is read a row group at a time, turned into flat Python lists, and kept until the cache is full; a row
is then put together from a few list look-ups. pyarrow's own way, slicing a table to one row, takes several times more.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from qvl_core.errors import BadInput, first_line

from .pages import NotPlain, Values
from .reader import OPEN, Reader

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
At = Callable[[int], Any]
"""The value at a position."""

_VALUE_BYTES = 60  # what a Python value takes beside its text


class Leaf(NamedTuple):
    """A column of bytes.

    path    as Parquet names it (`image.bytes`, `media.list.element.bytes`)
    number  among all leaves of the file
    column  top-level column
    field   name in its struct; empty if the column itself holds bytes
    listed  whether the column is a list of structs
    """

    path: str
    number: int
    column: str
    field: str
    listed: bool


class _Cache(Generic[T]):
    """Things up to a total size; the one used longest ago goes first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._things: OrderedDict[Any, tuple[T, int]] = OrderedDict()
        self._held = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key: Any) -> T | None:
        with self._lock:
            if (found := self._things.get(key)) is None:
                return None
            self._things.move_to_end(key)
            return found[0]

    def put(self, key: Any, thing: T, size: int) -> T:
        with self._lock:
            self._held += size - self._things.pop(key, (thing, 0))[1]
            self._things[key] = thing, size
            while len(self._things) > 1 and self._held > self.size:
                self._held -= self._things.popitem(last=False)[1][1]
        return thing


# What is kept of all files that a process reads: it may be a thousand shards.
TEXTS = _Cache[dict[str, At]](128 << 20)
"""Values other than bytes."""
PICTURES = _Cache[At](128 << 20)
"""Bytes of columns in which they cannot be read one by one."""


class RowGroups:
    """A Parquet file as rows. Picklable; the file is opened again. Raises BadInput for what is wrong with it.

    `schema` is what the file's metadata call `qvl.schema`; empty in files of others. With `sparse`, fields of structs
    that are null in the whole row group are left out, which of many optional fields are most.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sparse = False
        self._reader = Reader(path)
        self._values: dict[tuple[int, str], Values | None] = {}  # None: not plain
        file = self._parquet()
        self.schema = (file.metadata.metadata or {}).get(b"qvl.schema", b"").decode(errors="replace")
        self.leaves = [file.schema.column(i).path for i in range(len(file.schema))]
        self.columns = list(file.schema_arrow.names)
        if len(set(self.columns)) < len(self.columns):
            double = next(name for name in self.columns if self.columns.count(name) > 1)
            raise BadInput(f"{path}: has two columns {double!r}; rename one.")
        self.bytes_leaves = {leaf.path: leaf for leaf in _bytes_leaves(file)}
        self._starts = [0]
        for group in range(file.metadata.num_row_groups):
            self._starts.append(self._starts[-1] + file.metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, index: int) -> dict[str, Any]:
        """A row without its bytes: the field is left out of a struct, and the column out of the row."""
        group, row = self._find(index)
        if (columns := TEXTS.get((self, group))) is None:
            paths = [path for path in self.leaves if path not in self.bytes_leaves]
            table = self._read(group, paths)
            columns = TEXTS.put((self, group), self._values_at(table, group), _size(table))
        return {name: at(row) for name, at in columns.items()}

    def value(self, index: int, leaf: Leaf, position: int = 0) -> bytes | None:
        """The bytes in one row; of a list of structs, those of the entry at `position`. None for null."""
        group, row = self._find(index)
        if (values := self._plain(group, leaf)) is not None:
            return values.read(self._reader.read, row, position)
        if (at := PICTURES.get((self, group, leaf.path))) is None:
            column = self._read(group, [leaf.path])[leaf.column]
            at = PICTURES.put((self, group, leaf.path), _at(column), column.nbytes)
        value = at(row)
        if leaf.listed:
            value = value[position]
        found: bytes | None = value[leaf.field] if leaf.field else value
        return found

    def fill(self, index: int, row: dict[str, Any], leaf: Leaf) -> None:
        """Put the bytes of one column where they belong in a row."""
        if not leaf.field:
            row[leaf.column] = self.value(index, leaf)
            return
        entries = (row[leaf.column] or ()) if leaf.listed else (row[leaf.column],)
        for position, entry in enumerate(entries):
            if entry is not None:
                entry[leaf.field] = self.value(index, leaf, position)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": {}}

    def _find(self, index: int) -> tuple[int, int]:
        """Row group, and row in it."""
        group = bisect_right(self._starts, index) - 1
        return group, index - self._starts[group]

    def _plain(self, group: int, leaf: Leaf) -> Values | None:
        key = group, leaf.path
        if key not in self._values:
            found = self._parquet().metadata.row_group(group)
            column = self._parquet().schema.column(leaf.number)
            try:
                self._values[key] = Values(self._reader.read, found.num_rows, found.column(leaf.number), column)
            except NotPlain:
                self._values[key] = None
        return self._values[key]

    def _parquet(self) -> Any:
        import pyarrow as pa

        try:
            return _opened(self)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{self.path}: not a readable Parquet file ({first_line(error)}).") from None

    def _values_at(self, table: "pa.Table", group: int) -> dict[str, At]:
        try:
            return {name: _at(table[name], self.sparse) for name in table.column_names}
        except (ValueError, OverflowError) as error:  # dates beyond Python's
            raise BadInput(f"{self.path}: a value in row group {group} cannot be read ({first_line(error)}).") from None

    def _read(self, group: int, paths: list[str]) -> "pa.Table":
        import pyarrow as pa

        self._reader.check()
        try:
            return self._parquet().read_row_group(group, paths, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{self.path}: damaged row group {group} ({first_line(error)}).") from None


@lru_cache(maxsize=OPEN)
def _opened(groups: RowGroups) -> Any:
    """pyarrow's reader of a file, which holds it open, and its footer."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(groups.path)


def _bytes_leaves(file: Any) -> list[Leaf]:
    """Columns of bytes whose values can be put in by themselves: bytes, structs with bytes, lists of such structs."""
    import pyarrow as pa

    found = []
    numbers = {file.schema.column(i).path: i for i in range(len(file.schema))}
    for field in file.schema_arrow:
        listed = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        inner = field.type.value_type if listed else field.type
        if pa.types.is_struct(inner):
            names = [entry.name for entry in inner if _is_bytes(entry.type)]
            if len(names) == inner.num_fields:
                continue  # nothing would be left to say where a struct is null
        else:
            names = [""] if _is_bytes(inner) and not listed else []
        for name in names:
            middle = [""] if not listed else [f".list.{field.type.value_field.name}", ".list.element", ".list.item"]
            paths = [f"{field.name}{part}{'.' if name else ''}{name}" for part in middle]
            if path := next((path for path in paths if path in numbers), None):
                found.append(Leaf(path, numbers[path], field.name, name, listed))
    return found


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _at(column: "pa.ChunkedArray | pa.Array", sparse: bool = False) -> At:
    """The Python value at each position of a column; if `sparse`, structs without the fields that are null in all."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    valid = column.is_valid().to_pylist() if column.null_count else None
    if pa.types.is_struct(column.type):
        fields = {entry.name: column.field(i) for i, entry in enumerate(column.type)}
        said = {name: field for name, field in fields.items() if not sparse or field.null_count < len(field)}
        return _struct_at({name: _at(field, sparse) for name, field in said.items()}, valid)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _list_at(_at(column.values, sparse), column.offsets.to_pylist(), valid)
    if _is_bytes(column.type):
        return lambda position: column[position].as_py()  # not all at once: they may be large
    if pa.types.is_map(column.type):
        return lambda position: column[position].as_py(maps_as_pydicts="strict")
    values: list[Any] = column.to_pylist()
    return values.__getitem__


def _struct_at(fields: dict[str, At], valid: list[bool] | None) -> At:
    items = tuple(fields.items())
    if valid is None:
        return lambda position: {name: at(position) for name, at in items}
    return lambda position: {name: at(position) for name, at in items} if valid[position] else None


def _list_at(entry: At, offsets: list[int], valid: list[bool] | None) -> At:
    def at(position: int) -> list[Any] | None:
        if valid is not None and not valid[position]:
            return None
        return [entry(place) for place in range(offsets[position], offsets[position + 1])]

    return at


def _size(table: "pa.Table") -> int:
    """About what the Python values of a table take."""
    return int(table.nbytes) + _VALUE_BYTES * sum(_count(column) for column in table.columns)


def _count(column: Any) -> int:
    """Leaf values of a column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    flat = column
    while pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type):
        flat = pc.list_flatten(flat)
    fields = flat.type.num_fields if pa.types.is_struct(flat.type) else 1
    return len(flat) * max(fields, 1)
