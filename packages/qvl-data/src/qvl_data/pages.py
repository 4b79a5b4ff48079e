"""Where each value of a plain byte column stands in a Parquet file, so that one picture is read without its row group.

pyarrow reads column chunks whole. A chunk that is neither compressed nor dictionary-encoded holds its values as they
are: page headers (Thrift, compact protocol), levels (RLE), and then length and bytes of value after value. See the
Apache Parquet format, README.md ("Data Pages") and Encodings.md (PLAIN, RLE).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Read = Callable[[int, int], bytes]
_HEADER_BYTES = 16 * 1024  # more than any page header: statistics hold no large values
_DATA_PAGE, _PLAIN = 0, 0  # parquet.thrift: PageType, Encoding


class NotPlain(Exception):
    """The chunk is laid out in another way (or damaged); pyarrow reads it, or says what is wrong."""


class Values:
    """The values of one column chunk, by row and, if it lies below a list, position in the row's list.

    read     bytes of the Parquet file: `read(start, size)`, fewer where it ends
    rows     rows of the chunk's row group
    chunk    pyarrow's ColumnChunkMetaData
    column   pyarrow's ColumnSchema

    Only positions are kept: 16 bytes for a value, 8 for a row. Raises NotPlain.
    """

    def __init__(self, read: Read, rows: int, chunk: Any, column: Any) -> None:
        plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
        if not plain or chunk.physical_type != "BYTE_ARRAY" or column.max_repetition_level > 1:
            raise NotPlain
        levels = column.max_repetition_level, column.max_definition_level
        at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        spans, repeated = [], []
        try:
            while at < end:
                at, page_spans, page_repeated = _page(read, at, end, *levels)
                spans.append(page_spans)
                repeated.append(page_repeated)
            self._spans = np.concatenate(spans)  # (N, 2) start, length; length -1: null
            self._first = np.flatnonzero(np.concatenate(repeated) == 0)  # (rows,) where each row starts in _spans
        except Exception as error:  # whatever the damage leads to
            raise NotPlain from error
        if len(self._spans) != chunk.num_values or len(self._first) != rows:
            raise NotPlain

    def read(self, read: Read, row: int, position: int) -> bytes | None:
        """One value; None if it is null."""
        start, length = (int(number) for number in self._spans[self._first[row] + position])
        if length < 0:
            return None
        return _whole(read, start, length)


def _page(read: Read, at: int, end: int, lists: int, deepest: int) -> tuple[int, NDArray[np.int64], NDArray[np.uint8]]:
    """Where the next page starts; spans (n, 2) and repetition levels (n,) of the page at `at`."""
    header, size = _struct(read(at, min(_HEADER_BYTES, end - at)), 0)
    if header[1] != _DATA_PAGE or header[5][2] != _PLAIN:
        raise ValueError("not a plain data page")
    count, at = header[5][1], at + size
    stop = at + header[3]
    repeated, at = _levels(read, at, count, lists)
    defined, at = _levels(read, at, count, deepest)
    spans = np.full((count, 2), -1, np.int64)
    for entry in np.flatnonzero(defined == deepest):
        length = int.from_bytes(_whole(read, at, 4), "little")
        spans[entry] = at + 4, length
        at += 4 + length
    if at != stop or stop > end:
        raise ValueError("the values do not fill the page")
    return stop, spans, repeated


def _levels(read: Read, at: int, count: int, highest: int) -> tuple[NDArray[np.uint8], int]:
    """`count` levels of 0..highest (runs and bit-packed groups, behind their size), and where they end."""
    if highest == 0:  # not written
        return np.zeros(count, np.uint8), at
    size = int.from_bytes(_whole(read, at, 4), "little")
    if size > 8 * count + 8:
        raise ValueError("levels are larger than they can be")
    data, width = _whole(read, at + 4, size), highest.bit_length()
    levels = np.empty(count, np.uint8)
    done = position = 0
    while done < count:
        head, position = _varint(data, position)
        if head & 1:  # groups of 8 levels, packed from the lowest bit up
            packed = np.frombuffer(data, np.uint8, (head >> 1) * width, position)
            bits = np.unpackbits(packed, bitorder="little").reshape(-1, width)
            run, position = bits @ (1 << np.arange(width)), position + len(packed)
        else:  # one level, many times
            run, position = np.full(min(head >> 1, count - done), data[position]), position + 1
        run = run[: count - done]  # the last group is padded
        if not len(run):
            raise ValueError("an empty run")
        levels[done : done + len(run)] = run
        done += len(run)
    return levels, at + 4 + size


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A Thrift struct by field number, and where it ends; of lists, page headers have none."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            fields[number], at = _zigzag(data, at)
        elif kind == 8:
            size, at = _varint(data, at)
            fields[number], at = data[at : at + size], at + size
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"a field of type {kind} in a page header")
    return fields, at + 1


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _whole(read: Read, at: int, size: int) -> bytes:
    data = read(at, size)
    if len(data) < size:
        raise EOFError
    return data
