"""Data sets in the containers that others use: tables of foreign rows, arrays, columns under their own names."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data.convert import convert
from qvl_data.dataset import Dataset, open_rows
from qvl_data.errors import BadSample
from qvl_data.formats import get_format
from qvl_data.groups import group_of
from qvl_data.sample import read_sample
from qvl_data.table_writers import ParquetTable, TextTable
from qvl_data.writers import open_writer, write

from .chats import build, picture, write_png
from .killing import check_every_kill

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


def lines(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def pixels(data):
    return [[sample.opener.open(media).tobytes() for media in sample.media] for sample in data]


@pytest.fixture
def photos(tmp_path):
    for number in range(3):
        write_png(tmp_path / f"in/{number}.png", picture(8, 8, number))
    return tmp_path / "in"


# --- CSV and TSV


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", 'b",\t', "c\nd", "é"]), texts, min_size=1), min_size=1))
def test_cells_come_back(tmp_path_factory, rows):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for name in ("a.csv", "a.tsv"):
        file = tmp_path_factory.mktemp("table") / name
        with TextTable(file, file) as table:
            for row in rows:
                table.write(row)
        if len(columns) == 1 and any(not row[columns[0]] for row in rows):
            continue  # an empty line, which every reader passes over
        read = open_rows(file)
        assert [read[number] for number in range(len(read))] == [
            {column: row.get(column, "") for column in columns} for row in rows
        ]


def test_a_table_of_questions(photos, tmp_path):
    rows = [
        {"photo": "0.png", "question": 'What, "exactly"?\nTell.', "answer": "7", "note": "", "uid": "a"},
        {"photo": "", "question": "Why?", "answer": "因為", "note": "x\ty", "uid": "b"},
    ]
    columns = {"image": "photo", "user": "question", "assistant": "answer", "id": "uid"}
    source = lines(photos / "vqa.jsonl", *rows)
    for name in ("out/vqa.csv", "out2/vqa.tsv", "out3/vqa.json", "out4/vqa.parquet"):
        convert(source, tmp_path / name, "flat", columns=columns)
        again = Dataset(tmp_path / name, columns=columns)
        assert [sample.messages for sample in again] == [sample.messages for sample in Dataset(source, columns=columns)]
        assert pixels(again) == pixels(Dataset(source, columns=columns))
        convert(tmp_path / name, tmp_path / f"{name}.back/vqa.jsonl", "flat", columns=columns)
        back = (tmp_path / f"{name}.back/vqa.jsonl").read_text(encoding="utf-8").splitlines()
        nothing = None if "parquet" in name else ""  # where pictures are no texts
        assert [json.loads(line) for line in back] == [{**row, "photo": row["photo"] or nothing} for row in rows]


def test_what_no_cell_holds_is_refused(tmp_path):
    two = get_format("flat").read({"images": ["a.png", "b.png"], "user": "?", "assistant": "x"}, "v.jsonl:4")
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    two = two.read_from(Dataset(lines(tmp_path / "x.jsonl", {})).opener, "v.jsonl:4")
    with pytest.raises(
        BadSample, match=r'v\.jsonl:4: "images" is list, and a cell of CSV holds one text; write \.json'
    ):
        write([two], tmp_path / "v.csv", "flat")
    assert not (tmp_path / "v.csv").exists()
    row = {"user": "?", "assistant": 3, "score": 0.5, "ok": True, "none": None}
    write([get_format("flat").read(row, "")], tmp_path / "v.csv", "flat")
    assert (tmp_path / "v.csv").read_text("utf-8") == "score,ok,none,user,assistant\n0.5,true,,?,3\n"
    assert Dataset(tmp_path / "v.csv")[0].messages[1].text == "3", "what flat wrote is recognised"


# --- arrays


@pytest.mark.parametrize("format", ["qvl", "openai", "qwenvl", "llava"])
def test_an_array_is_read_again(format, photos, tmp_path):
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "b"}]
    source = lines(photos / "train.jsonl", *({"image": f"{n}.png", "conversations": turns} for n in range(3)))
    convert(source, tmp_path / "out/train.json", format)
    assert len(json.loads((tmp_path / "out/train.json").read_text("utf-8"))) == 3
    assert pixels(Dataset(tmp_path / "out/train.json")) == pixels(Dataset(source))
    convert(source, tmp_path / "shards", format, container="json", shard=2)
    assert pixels(Dataset(tmp_path / "shards", "train")) == pixels(Dataset(source))


def test_an_array_without_rows_and_with_groups(tmp_path):
    write([], tmp_path / "none.json", "openai")
    assert (tmp_path / "none.json").read_text() == "[]\n"
    alone = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "b"}]}
    (tmp_path / "packed.json").write_text(json.dumps([[alone, alone], alone, [alone]]), encoding="utf-8")
    samples = list(Dataset(tmp_path / "packed.json"))
    assert group_of(samples[0], "qwenvl")
    write(samples, tmp_path / "again.json", "qwenvl")
    assert json.loads((tmp_path / "again.json").read_text("utf-8")) == [[alone, alone], alone, [alone]]


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "format"), [("a.json", "openai"), ("a.csv", "flat"), ("a.parquet", "flat")])
def test_killed_anywhere_it_ends_the_same(name, format, every, photos, tmp_path):
    source = lines(photos / "vqa.jsonl", *({"image": f"{n}.png", "user": "?", "assistant": "x"} for n in range(3)))

    def command(out):
        return ["convert", str(source), str(out / name), "--format", format]

    assert check_every_kill(command, tmp_path / "kills", every) > 5


# --- Parquet


HF = [
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "b"}]}], "images": ["0.png"]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}], "source": "x", "n": 3},
]  # fmt: skip
METAQUERY = [
    {"source_images": ["0.png", "1.png"], "prompt": "Both.", "target_image": "2.png", "target_caption": "x"},
    {"source_images": ["2.png"], "prompt": "One.", "target_image": "0.png", "id": "second"},
]
OMNIEDIT = [
    {"omni_edit_id": "a", "src_img": "0.png", "edited_img": "1.png", "edited_prompt_list": ["Invert.", "Invert it."]},
    {"omni_edit_id": "b", "src_img": "1.png", "edited_img": "2.png", "edited_prompt_list": ["Again."], "o_score": 8.5},
]
EDIT = [
    {"source_image": "0.png", "target_image": "1.png", "instruction": "Invert.", "instruction_cn": "反"},
    {"source_image": "1.png", "target_image": "2.png", "instruction": "Again."},
]


@pytest.mark.parametrize(
    ("format", "rows"), [("hf", HF), ("metaquery", METAQUERY), ("omniedit", OMNIEDIT), ("edit", EDIT)]
)
def test_rows_go_into_parquet_with_their_pictures(format, rows, photos, tmp_path):
    source = lines(photos / "train.jsonl", *rows)
    convert(source, tmp_path / "one/train.parquet", format)
    convert(source, tmp_path / "many", format, container="parquet", shard=1)
    assert len(list((tmp_path / "many").glob("*.parquet"))) == 2
    before = Dataset(source)
    for data in (Dataset(tmp_path / "one/train.parquet"), Dataset(tmp_path / "many", "train")):
        assert [type(data.format), len(data)] == [type(before.format), len(before)]
        assert [(s.messages, s.edit) for s in data] == [(s.messages, s.edit) for s in before]
        assert pixels(data) == pixels(before)
        assert all(media.bytes for sample in data for media in sample.media)
    schema = pq.read_schema(tmp_path / "one/train.parquet")
    assert "qvl.schema" not in (schema.metadata or {})
    convert(tmp_path / "one/train.parquet", tmp_path / "back/train.jsonl", format)
    back = [json.loads(line) for line in (tmp_path / "back/train.jsonl").read_text("utf-8").splitlines()]
    for row, given_row in zip(back, rows, strict=True):
        assert {key: row[key] for key in given_row if key != "messages"} == {
            key: value for key, value in given_row.items() if key != "messages"
        }


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts | st.binary(max_size=4) | st.floats(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, min_size=1, max_size=2),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("ab"), values, min_size=1), max_size=4), st.sampled_from([1, 100]))
def test_a_row_comes_back_or_is_refused(tmp_path_factory, rows, group):
    file = tmp_path_factory.mktemp("table") / "a.parquet"
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qvl_data.table_writers.GROUP_ROWS", group)
        with ParquetTable(file, file) as table:
            for row in rows:
                try:
                    table.write(row)
                    kept.append(row)
                except BadSample as error:
                    assert error.reason == "not_expressible"  # noqa: PT017
    found = pq.read_table(file).to_pylist() if kept else []
    assert [without_nulls(row) for row in found] == [without_nulls(row) for row in kept]


def without_nulls(value):
    if isinstance(value, dict):
        cleaned = {key: without_nulls(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value or None


def test_types_of_a_column_are_one(tmp_path):
    file = tmp_path / "a.parquet"
    with ParquetTable(file, file) as table:
        table.write({"a": 1, "b": [], "c": None})
        table.write({"a": 0.5, "b": [{"x": 1}], "d": {}})
        with pytest.raises(BadSample, match=r"holds values of one type \(b.x: int64 and string\); write \.jsonl"):
            table.write({"b": [{"x": "t"}]})
        table.write({"d": {"e": b"f"}})
    assert pq.read_table(file).to_pylist()[:2] == [
        {"a": 1.0, "b": [], "c": None, "d": None},
        {"a": 0.5, "b": [{"x": 1}], "c": None, "d": {"e": None}},
    ]
    with ParquetTable(file, file) as table:
        for cell in ("", {"path": "a"}, None, ""):
            table.write({"a": cell, "b": "", "c": "" if cell else "x"})
    assert [row["a"] for row in pq.read_table(file).to_pylist()] == [None, {"path": "a"}, None, None]
    assert {row["b"] for row in pq.read_table(file).to_pylist()} == {""}
    with (
        pytest.raises(BadInput, match=r"a\.parquet: a\.b holds only objects without keys"),
        ParquetTable(file, file) as table,
    ):
        table.write({"a": {"b": [{}]}})


def test_pictures_in_parquet_lie_plain(photos, tmp_path):
    source = lines(photos / "vqa.jsonl", {"image": "0.png", "user": "?", "assistant": "x"})
    convert(source, tmp_path / "a.parquet", "flat")
    columns = pq.read_metadata(tmp_path / "a.parquet").row_group(0).to_dict()["columns"]
    assert {column["path_in_schema"]: column["compression"] for column in columns} == {
        "user": "ZSTD", "assistant": "ZSTD", "image.bytes": "UNCOMPRESSED", "image.path": "ZSTD",
    }  # fmt: skip
    assert pa.types.is_binary(pq.read_schema(tmp_path / "a.parquet").field("image").type.field("bytes").type)


# --- columns under their own names


NAMED = [
    ("edit", {"source_image": "src", "instruction": "caption"},
     {"src": "0.png", "target_image": "1.png", "caption": "Invert.", "id": "a"}),
    ("metaquery", {"prompt": "ask"}, {"source_images": ["0.png"], "ask": "One.", "target_image": "1.png"}),
    ("flat", {"user": "q", "assistant": "a"}, {"q": "?", "a": "x", "user": "someone"}),
    ("openai", {"messages": "dialog"}, {"dialog": [{"role": "user", "content": "?"}], "n": 1}),
    ("sharegpt", {"images": "pages", "conversations": "talk"},
     {"talk": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "b"}], "pages": ["0.png"]}),
]  # fmt: skip


@pytest.mark.parametrize(("format", "columns", "row"), NAMED, ids=[name for name, *_ in NAMED])
def test_columns_get_their_names_again(format, columns, row, photos, tmp_path):
    source = lines(photos / "train.jsonl", row)
    convert(source, tmp_path / "kept.parquet", from_format=format, columns=columns)
    convert(tmp_path / "kept.parquet", tmp_path / "back/train.jsonl", format)
    assert json.loads((tmp_path / "back/train.jsonl").read_text("utf-8")) == row
    convert(source, tmp_path / "back/at_once.jsonl", format, from_format=format, columns=columns)
    assert json.loads((tmp_path / "back/at_once.jsonl").read_text("utf-8")) == row
    with open_writer(tmp_path / "back/other.jsonl", format, {key: f"my_{key}" for key in columns}) as out:
        out.write(Dataset(tmp_path / "kept.parquet")[0])
    assert {f"my_{key}" for key in columns} <= json.loads((tmp_path / "back/other.jsonl").read_text("utf-8")).keys()


@pytest.mark.parametrize("hint", ["x", ["a"], {"user": ["q"]}, {"nothing": "q"}, {"user": "q", "assistant": "q"}, 7])
def test_a_hint_of_columns_that_is_none_is_told(hint, tmp_path):
    data = get_format("flat").read({"user": "?", "assistant": "x"}, "a:1").to_dict()
    data["extra"] = json.dumps({"layout": {"columns": hint}})
    with pytest.raises(BadSample, match="does not fit the sample") as caught:
        write([read_sample(data)], tmp_path / "a.jsonl", "flat")
    assert caught.value.reason == "layout"


def test_other_formats_do_not_look_at_the_names(tmp_path):
    sample = get_format("flat", {"user": "q"}).read({"q": "?", "assistant": "x"}, "a:1")
    write([sample, build(("user", "?"), ("assistant", "b"), id="b")], tmp_path / "a.jsonl", "openai")
    assert [row.messages[0].text for row in Dataset(tmp_path / "a.jsonl")] == ["?", "?"]
