import csv
import io
import pickle
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data import row_groups, tables
from qvl_data.dataset import open_rows
from qvl_data.errors import BadSample
from qvl_data.tables import ArrowRows, ParquetRows, TextRows

from .chats import file_of, picture

# CSV and TSV

cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 4), st.sampled_from(["csv", "tsv"]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_text_rows_are_what_was_written(tmp_path_factory, data, width, kind, mark, end):
    rows = data.draw(st.lists(st.lists(cell, min_size=width, max_size=width), max_size=6))
    names = [f"c {n}" for n in range(width)]
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",", lineterminator=end)
    writer.writerows([names, *rows])
    file = tmp_path_factory.mktemp("text") / f"a.{kind}"
    file.write_bytes((b"\xef\xbb\xbf" if mark else b"") + out.getvalue().encode())
    read = open_rows(file)
    assert [read[i] for i in range(len(read))] == [dict(zip(names, row, strict=True)) for row in rows]


def test_places_are_first_lines(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b'id,text\n\n1,"a\nb ""c"" ,"\n2,x\n\n3\n4,"5,6\n7,8"\n')
    rows = TextRows(file)
    assert [rows.place(i).rsplit(":", 1)[1] for i in range(4)] == ["3", "5", "7", "8"]
    assert [rows[i] for i in (3, 0, 1)] == [
        {"id": "4", "text": "5,6\n7,8"},
        {"id": "1", "text": 'a\nb "c" ,'},
        {"id": "2", "text": "x"},
    ]
    with pytest.raises(BadSample, match=r"a\.csv:7: 1 cells under 2 columns; quote cells that hold ','") as caught:
        rows[2]
    assert caught.value.reason == "table"
    assert pickle.loads(pickle.dumps(rows))[0] == rows[0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b'1,"open', "cannot be read as a row of a table: unexpected end of data"),
        (b'1,"a"b', "cannot be read as a row of a table: ',' expected after '\"'"),
        (b"1,\xff", "invalid UTF-8 at byte 3 of the row"),
        (b"1,a\rb", "bare carriage return"),
        (b"1,2,3", "3 cells under 2 columns"),
    ],
)
def test_a_bad_row_is_only_a_bad_row(tmp_path, row, words):
    file = tmp_path / "a.csv"
    file.write_bytes(b"a,b\nx,y\n" + row)
    rows = TextRows(file)
    assert rows[0] == {"a": "x", "b": "y"}
    with pytest.raises(BadSample, match=words) as caught:
        rows[1]
    assert caught.value.place == f"{file}:3"


def test_long_rows_are_refused_and_the_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr("qvl_data.spans.MAX_BYTES", 1 << 20)
    file = tmp_path / "a.tsv"
    for long in (b"x" * (1 << 20), b'"' + b"x" * (3 << 20) + b'"', b"y" * (1 << 21)):
        file.write_bytes(b"a\tb\n1\t" + long + b"\n2\tz\n")
        rows = TextRows(file)
        assert rows[len(rows) - 1] == {"a": "2", "b": "z"}
        with pytest.raises(BadSample, match=r"a\.tsv:2: a row longer than 1 MiB; close its quotes"):
            rows[0]
    base64 = b"z" * 500_000
    file.write_bytes(b"a\tb\n1\t" + base64 + b"\n")
    assert TextRows(file)[0]["b"] == base64.decode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty; its first line should name the columns"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"a,b,a\n1,2,3\n", r"a\.csv:1: has two columns 'a'; rename one"),
        (b"a,\xff\n1,2\n", r"a\.csv:1: invalid UTF-8 at byte 3"),
        ("a,b\n1,2\n".encode("utf-16"), "invalid UTF-8 at byte 1"),
    ],
)
def test_a_table_must_name_its_columns(tmp_path, content, words):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=words) as caught:
        TextRows(file)
    assert not isinstance(caught.value, BadSample)


# Parquet and Arrow

PNG = file_of(picture(4, 4))
KIND = pa.schema(
    {
        "n": pa.int64(),
        "text": pa.string(),
        "raw": pa.binary(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "blobs": pa.list_(pa.binary()),
        "only": pa.struct({"bytes": pa.binary()}),
        "turns": pa.list_(pa.struct({"role": pa.string(), "parts": pa.list_(pa.struct({"t": pa.large_string()}))})),
        "day": pa.date32(),
        "map": pa.map_(pa.string(), pa.int32()),
        "fixed": pa.list_(pa.float64(), 2),
        "word": pa.dictionary(pa.int8(), pa.string()),
    }
)
some = st.none() | st.binary(max_size=6)
image = st.none() | st.fixed_dictionaries({"bytes": some, "path": st.none() | st.text(max_size=3)})
part = st.none() | st.fixed_dictionaries({"t": st.none() | st.text(max_size=3)})
turn = st.none() | st.fixed_dictionaries(
    {"role": st.none() | st.text(max_size=2), "parts": st.none() | st.lists(part, max_size=2)}
)
table_rows = st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-9, 9),
        "text": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        "raw": some,
        "image": image,
        "images": st.none() | st.lists(image, max_size=3),
        "blobs": st.none() | st.lists(some, max_size=3),
        "only": st.none() | st.fixed_dictionaries({"bytes": some}),
        "turns": st.none() | st.lists(turn, max_size=2),
        "day": st.none() | st.dates(date(1990, 1, 1), date(2030, 1, 1)),
        "map": st.none() | st.dictionaries(st.text(max_size=2), st.integers(0, 9), max_size=2),
        "fixed": st.none() | st.lists(st.floats(-1, 1), min_size=2, max_size=2),
        "word": st.none() | st.sampled_from(["x", "y"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(table_rows, min_size=1, max_size=12),
    st.integers(1, 12),
    st.sampled_from([{}, {"compression": "none", "use_dictionary": False}, {"data_page_version": "2.0"}]),
)
def test_table_rows_are_what_was_written(tmp_path_factory, rows, size, options):
    folder = tmp_path_factory.mktemp("table")
    given_rows = [{**row, "map": row["map"] and list(row["map"].items())} for row in rows]
    table = pa.Table.from_pylist(given_rows, KIND)
    pq.write_table(table, folder / "a.parquet", row_group_size=size, **options)
    with pa.ipc.new_stream(folder / "a.arrow", KIND) as out:
        out.write_table(table, max_chunksize=size)
    with pa.ipc.new_file(folder / "b.arrow", KIND) as out:
        out.write_table(table, max_chunksize=size)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        read = open_rows(folder / name)
        assert read.format is None
        order = [*reversed(range(len(rows))), 0]
        assert [read[i] for i in order] == [rows[i] for i in order]
        assert list(read[0]) == KIND.names


def test_plain_pictures_are_read_one_by_one(tmp_path):
    file = tmp_path / "a.parquet"
    pictures = [file_of(picture(4, 4, n)) for n in range(40)]
    kind = pa.schema({"image": KIND.field("image").type, "raw": pa.binary(), "n": pa.int64()})
    rows = [{"image": {"bytes": data, "path": None}, "raw": data[:9], "n": n} for n, data in enumerate(pictures)]
    pq.write_table(
        pa.Table.from_pylist(rows, kind),
        file,
        row_group_size=10,
        compression="none",
        use_dictionary=["n", "image.path"],
    )
    read = ParquetRows(file)
    assert [read[i] for i in (33, 2, 39)] == [rows[i] for i in (33, 2, 39)]
    assert not [key for key in row_groups.PICTURES._things if key[0] is read._groups]
    assert pickle.loads(pickle.dumps(read))[5] == rows[5]


def test_the_hubs_own_parquet_is_read_one_by_one(tmp_path):
    datasets = pytest.importorskip("datasets", reason='needs pip install "qvl-data[hub]"')
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": PNG, "path": "a.png"}] * 3, "text": ["a", "b", None]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    read = open_rows(tmp_path / "a.parquet")
    assert read[1] == {"image": {"bytes": PNG, "path": "a.png"}, "text": "b"}
    assert read.outline(2) == read[2]
    assert not [key for key in row_groups.PICTURES._things if key[0] is read._groups]


def test_damaged_tables(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 nothing")
    with pytest.raises(BadInput, match=r"a\.arrow: not a readable Arrow file"):
        ArrowRows(tmp_path / "a.arrow")
    table = pa.table({"a": ["x", "yy"]})
    pq.write_table(table.rename_columns(["a"]).append_column("a", [[1, 2]]), tmp_path / "b.parquet")
    with pytest.raises(BadInput, match=r"b\.parquet: has two columns 'a'; rename one"):
        ParquetRows(tmp_path / "b.parquet")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_damage_in_arrow_is_refused_or_harmless(tmp_path_factory, at, junk):
    file = tmp_path_factory.mktemp("damage") / "a.arrow"
    table = pa.table({"a": ["x", "yy", None] * 9, "b": [b"1", b"", b"333"] * 9, "c": [[1], [2, 3], None] * 9})
    with pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=9)
    content = bytearray(file.read_bytes())
    at %= len(content)
    content[at : at + len(junk)] = junk
    file.write_bytes(content)
    try:
        rows = ArrowRows(file)
        assert all(set(rows[i]) for i in range(len(rows)))
    except BadInput:
        pass
