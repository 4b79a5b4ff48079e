import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_data.pages import NotPlain, Values

SCHEMA = pa.schema({"media": pa.list_(pa.struct({"name": pa.string(), "bytes": pa.binary()}))})
entries = st.none() | st.fixed_dictionaries({"name": st.just("x"), "bytes": st.none() | st.binary(max_size=40)})
rows = st.lists(st.none() | st.lists(entries, max_size=4), min_size=1, max_size=60)


def written(lists, **options):
    sink = io.BytesIO()
    table = pa.Table.from_pylist([{"media": entry} for entry in lists], SCHEMA)
    pq.write_table(table, sink, **{"compression": "none", "use_dictionary": False} | options)
    return sink


def reading(sink):
    content = sink.getvalue()
    return lambda start, size: content[start : start + size]


def values_of(sink, group=0):
    file = pq.ParquetFile(sink)
    found = file.metadata.row_group(group)
    index = next(i for i in range(len(file.schema)) if file.schema.column(i).path.endswith(".bytes"))
    return Values(reading(sink), found.num_rows, found.column(index), file.schema.column(index))


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([1, 64, 1 << 20]), st.sampled_from([1, 3, 1024]), st.integers(1, 60))
def test_every_value_is_where_pyarrow_finds_it(lists, page, batch, size):
    sink = written(lists, data_page_size=page, write_batch_size=batch, row_group_size=size)
    for group in range(pq.ParquetFile(sink).num_row_groups):
        values = values_of(sink, group)
        for row, entry in enumerate(lists[group * size : (group + 1) * size]):
            for position, media in enumerate(entry or ()):
                assert values.read(reading(sink), row, position) == (media and media["bytes"])


def test_large_groups_and_statistics():
    lists = [[{"name": "", "bytes": bytes([i % 256]) * (i % 90)}] * (i % 3) for i in range(3000)]
    values = values_of(sink := written(lists, write_statistics=True, data_page_size=2000))
    assert all(values.read(reading(sink), i, 0) == lists[i][0]["bytes"] for i in range(3000) if lists[i])


@pytest.mark.parametrize(
    "options", [{"compression": "snappy"}, {"use_dictionary": True}, {"data_page_version": "2.0"}], ids=str
)
def test_other_layouts_are_refused(options):
    with pytest.raises(NotPlain):
        values_of(written([[{"name": "", "bytes": b"abc"}]], **options))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_damage_is_refused_or_stays_inside_the_file(at, junk):
    sink = written([[{"name": "", "bytes": bytes(5)}, None, {"name": "", "bytes": None}]] * 30, data_page_size=64)
    content = bytearray(sink.getvalue())
    end = pq.ParquetFile(sink).metadata.row_group(0).column(1)
    at = at % (end.data_page_offset + end.total_compressed_size - 8)
    content[at : at + len(junk)] = junk
    try:
        values = values_of(sink := io.BytesIO(content))
    except (NotPlain, OSError, pa.ArrowInvalid):
        return
    assert len(values.read(reading(sink), 0, 0) or b"") <= len(content)


def test_a_file_that_became_shorter(tmp_path: Path):
    sink = written([[{"name": "", "bytes": b"abc"}]])
    with pytest.raises(EOFError):
        values_of(sink).read(reading(io.BytesIO(sink.getvalue()[:4])), 0, 0)
