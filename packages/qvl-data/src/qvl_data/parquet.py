"""Parquet with embedded pictures: one file, random access, readable by every Arrow tool.

Row groups hold at most 100 samples or 16 MiB; text columns are compressed with zstd, pictures (already compressed) are
not. The file's metadata names the sample schema. Only `extra` is free-form, so that files always have one Arrow schema.
"""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl_core.errors import BadInput

from .sample import SCHEMA, Sample

if TYPE_CHECKING:
    import pyarrow as pa

_SAID = ("instruction", "inverse")  # texts by language: a list of pairs in Arrow, whose tools read no maps
GROUP_ROWS = 100
GROUP_BYTES = 16 * 1024 * 1024
CACHE_BYTES = 128 * 1024 * 1024
"""Decoded row groups that a reader keeps."""


def arrow_schema() -> "pa.Schema":
    """The Arrow schema of `qvl.sample/1`."""
    import pyarrow as pa

    text, index, number = pa.string(), pa.int32(), pa.float64()
    indices = pa.list_(index)
    said = pa.list_(pa.struct({"lang": text, "text": text}))
    video = pa.struct({"fps": number, "start": number, "end": number, "frames": indices})
    media = pa.struct(
        {"kind": text, "path": text, "url": text, "bytes": pa.binary(), "sha256": text, "mime": text}
        | {"width": index, "height": index, "origin": text, "video": video}
    )
    part = pa.struct({"type": text, "text": text, "media": index, "regions": indices, "template": text})
    message = pa.struct({"role": text, "parts": pa.list_(part), "train": pa.bool_(), "weight": number})
    region = pa.struct(
        {"media": index, "kind": text, "xy": pa.list_(number), "label": text, "score": number, "crowd": pa.bool_()}
    )
    edit = pa.struct({"sources": indices, "target": index, "instruction": said, "inverse": said})
    meta = pa.struct(dict.fromkeys(("dataset", "format", "locator", "license", "url", "split"), text))
    return pa.schema(
        {"id": text, "task": text, "media": pa.list_(media), "messages": pa.list_(message), "edit": edit}
        | {"regions": pa.list_(region), "meta": meta, "extra": text},
        metadata={"qvl.schema": SCHEMA},
    )


class Writer:
    """Writes samples to one Parquet file, a row group at a time; a context manager."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._schema = arrow_schema()
        leaves = pq.ParquetFile(_empty(self._schema)).schema
        columns = [leaves.column(i).path for i in range(len(leaves))]
        pictures = [name for name in columns if name.startswith("media.") and name.endswith(".bytes")]
        texts = [name for name in columns if name not in pictures]
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            compression=dict.fromkeys(texts, "zstd") | dict.fromkeys(pictures, "none"),
            use_dictionary=texts,
            write_statistics=texts,
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, sample: Sample) -> None:
        self._rows.append(_to_row(sample))
        self._bytes += sum(len(media.bytes or b"") for media in sample.media)
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, self._schema), row_group_size=GROUP_ROWS)
        self._rows, self._bytes = [], 0


class Rows:
    """The samples of a Parquet file by number, as JSON-like rows of `qvl.sample/1` (pictures as bytes).

    Row groups are read when asked for and kept until the cache is full; reopened after pickling.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._cache: OrderedDict[int, Any] = OrderedDict()
        metadata = self._open().metadata
        if (metadata.metadata or {}).get(b"qvl.schema") != SCHEMA.encode():
            raise BadInput(f"{path}: this Parquet file holds no {SCHEMA} samples; convert it with qvl-data convert.")
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        from bisect import bisect_right

        group = bisect_right(self._starts, index) - 1
        return _from_row(self._group(group).slice(index - self._starts[group], 1).to_pylist()[0])

    def place(self, index: int) -> str:
        return f"{self.path}:{index + 1}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_cache": OrderedDict()}

    def _open(self) -> Any:
        if self._file is None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                self._file = pq.ParquetFile(self.path)
            except (pa.ArrowInvalid, OSError) as error:
                raise BadInput(f"{self.path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from None
        return self._file

    def _group(self, group: int) -> Any:
        if group in self._cache:
            self._cache.move_to_end(group)
        else:
            import pyarrow as pa

            try:
                self._cache[group] = self._open().read_row_group(group, use_threads=False)
            except (pa.ArrowInvalid, OSError) as error:
                raise BadInput(f"{self.path}: damaged row group {group} ({str(error).splitlines()[0]}).") from None
            while len(self._cache) > 1 and sum(table.nbytes for table in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return self._cache[group]


def write_parquet(samples: Iterable[Sample], path: Path) -> None:
    """Write samples, whose pictures should be embedded, to one file."""
    with Writer(path) as writer:
        for sample in samples:
            writer.write(sample)


def _empty(schema: "pa.Schema") -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return pa.BufferReader(sink.getvalue())


def _to_row(sample: Sample) -> dict[str, Any]:
    row = sample.model_dump(mode="python")
    del row["schema"]
    if row["edit"] is not None:
        for name in _SAID:
            if (said := row["edit"][name]) is not None:
                row["edit"][name] = [{"lang": lang, "text": text} for lang, text in said.items()]
    return row


def _from_row(row: dict[str, Any]) -> dict[str, Any]:
    if row["edit"] is not None:
        for name in _SAID:
            if (said := row["edit"][name]) is not None:
                row["edit"][name] = {entry["lang"]: entry["text"] for entry in said}
    row["schema"] = SCHEMA
    return row
