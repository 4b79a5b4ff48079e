"""Parquet with embedded pictures: one file, random access, readable by every Arrow tool.

Row groups hold at most 100 samples or 16 MiB; text columns are compressed with zstd, pictures (already compressed) are
not, so that each can be read by itself. The file's metadata names the sample schema. Only `extra` is free-form, so that
files always have one Arrow schema.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl_core.errors import BadInput

from .row_groups import RowGroups
from .sample import SCHEMA, Sample

if TYPE_CHECKING:
    import pyarrow as pa

_SAID = ("instruction", "inverse")  # texts by language: a list of pairs in Arrow, whose tools read no maps
GROUP_ROWS = 100
GROUP_BYTES = 16 * 1024 * 1024


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


def open_file(path: Path, schema: "pa.Schema") -> Any:
    """A pyarrow.parquet.ParquetWriter: pictures lie plain, everything else is compressed."""
    import pyarrow.parquet as pq

    leaves = pq.ParquetFile(_empty(schema)).schema
    columns = [leaves.column(number) for number in range(len(leaves))]
    pictures = [
        leaf.path for leaf in columns if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"
    ]
    texts = [leaf.path for leaf in columns if leaf.path not in pictures]
    return pq.ParquetWriter(
        path,
        schema,
        compression=dict.fromkeys(texts, "zstd") | dict.fromkeys(pictures, "none"),
        use_dictionary=texts,
        write_statistics=texts,
    )


class Writer:
    """Writes samples to one Parquet file, a row group at a time; a context manager."""

    def __init__(self, path: Path) -> None:
        self._schema = arrow_schema()
        self._file = open_file(path, self._schema)
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

    Each picture is read by itself, if its column is plain, as in every file written here. Reopened after pickling.
    """

    format: str | None = "qvl"

    def __init__(self, path: Path, groups: RowGroups | None = None) -> None:
        self.path = path
        self._groups = groups or RowGroups(path)
        self._groups.sparse = True
        if self._groups.schema != SCHEMA:
            raise BadInput(f"{path}: this Parquet file holds no {SCHEMA} samples.")
        there = set(self._groups.columns) | {
            f"{leaf.column}.{leaf.field}" for leaf in self._groups.bytes_leaves.values()
        }
        if missing := [name for name in (*arrow_schema().names, "media.bytes") if name not in there]:
            raise BadInput(f"{path}: lacks the column {missing[0]!r} of {SCHEMA}; write it anew with qvl-data convert.")
        self._picture = next(leaf for leaf in self._groups.bytes_leaves.values() if leaf.column == "media")

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._groups.row(index)
        self._groups.fill(index, row, self._picture)
        return _from_row(row)

    def outline(self, index: int) -> dict[str, Any]:
        """The row with empty bytes instead of its pictures, if it says the size of each; else the whole row."""
        row = self._groups.row(index)
        for media in row["media"] or ():
            known = media is not None and media["kind"] == "image" and media.get("width") and media.get("height")
            if media is None or (_is_embedded(media) and not known):
                return self[index]
            media["bytes"] = b"" if _is_embedded(media) else None
        return _from_row(row)

    def place(self, index: int) -> str:
        return f"{self.path}:{index + 1}"


def _is_picture(column: str) -> bool:
    return column.startswith("media.") and column.endswith(".bytes")


def _is_embedded(media: dict[str, Any]) -> bool:
    """Whether media whose bytes were not read must have some."""
    frames = (media.get("video") or {}).get("frames") is not None
    return media.get("path") is None and media.get("url") is None and not frames


def digest(path: Path) -> bytes:
    """SHA-256 of everything in a Parquet file but the pictures, of which only the sizes count.

    Reads the chunks of the text columns as they lie there, and the footer.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    total = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                if not _is_picture(chunk.path_in_schema):
                    file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
                    total.update(file.read(chunk.total_compressed_size))
        file.seek(-8 - metadata.serialized_size, os.SEEK_END)  # the footer, its length, and PAR1
        total.update(file.read())
    return total.digest()


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
            if (said := row["edit"].get(name)) is not None:
                row["edit"][name] = {entry["lang"]: entry["text"] for entry in said}
    row["schema"] = SCHEMA
    return row
