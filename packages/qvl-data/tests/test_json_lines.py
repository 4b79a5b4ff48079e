import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from qvl_core.errors import BadInput
from qvl_data import json_lines
from qvl_data.errors import BadSample
from qvl_data.json_lines import Rows, parse, parse_written

GOOD = b'{"a": 1}'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is no JSON number"),
        (b'{"a": 1e999}', "number 1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer of 5000 digits is too large"),
        (b'{"a": 1, "b": {"x": 1, "x": 2}}', 'key "x" appears twice'),
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 8"),
        (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 101 + b"]" * 101, "nested deeper than 100 levels"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested deeper than 100 levels"),
        (b"[" * 100_000, "nested deeper than 100 levels"),
        (b'{"a": 1', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON: Expecting property name enclosed in double quotes at character 2"),
        (b'{"a": 1} {"b": 2}', "not valid JSON: Extra data"),
        (b'{"a": "\x01"}', "not valid JSON: Invalid control character"),
    ],
)
def test_what_is_no_strict_json(line, words, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    rows = Rows(file)
    assert rows[0] == rows[2] == {"a": 1}  # a bad line does not spoil the others
    with pytest.raises(BadSample, match=words) as caught:
        rows[1]
    assert caught.value.place == f"{file}:3"
    assert caught.value.reason == "json"


def test_nesting_up_to_the_limit_and_brackets_in_text_are_fine():
    assert parse(b"[" * 100 + b"]" * 100, "") is not None
    text = json.dumps({"a": "[{" * 1000 + '\\"'}).encode()
    assert parse(text, "")["a"].startswith("[{[{")


def test_whole_surrogate_pairs_are_characters():
    assert parse(b'"\\ud83d\\ude00"', "") == "😀"


def test_long_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_BYTES", 1 << 20)
    file = tmp_path / "data.jsonl"

    def text(length):
        return b'"' + b"x" * (length - 2) + b'"'

    for extra in (1, 2, 1 << 20, (1 << 20) + 1):
        file.write_bytes(GOOD + b"\n" + text(1 << 20) + b"\r\n" + text((1 << 20) + extra) + b"\n" + GOOD)
        rows = Rows(file)
        assert len(rows) == 4
        assert len(rows[1]) == (1 << 20) - 2
        assert rows[3] == {"a": 1}
        with pytest.raises(BadSample, match=r"data\.jsonl:3: longer than 1 MiB"):
            rows[2]
    file.write_bytes(text(3 << 20))
    assert len(Rows(file)) == 1


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(values, min_size=1, max_size=6), st.sampled_from([None, 0, 2]), st.booleans())
def test_lines_and_arrays_hold_the_same(tmp_path_factory, rows, indent, ascii):
    folder = tmp_path_factory.mktemp("rows")
    array, lines = folder / "a.json", folder / "a.jsonl"
    array.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows), encoding="utf-8")
    for file in (array, lines):
        read = Rows(file)
        assert [read[i] for i in range(len(read))] == rows


def test_places_in_an_array_are_lines(tmp_path):
    file = tmp_path / "data.json"
    file.write_text('[\n {"a": "],"},\n\n {"b":\n  [1, 2]}\n , NaN\n]\n')
    rows = Rows(file)
    assert rows[0] == {"a": "],"}
    assert rows[1] == {"b": [1, 2]}
    assert [rows.place(i) for i in range(3)] == [f"{file}:{2 * n} (sample {n})" for n in (1, 2, 3)]
    with pytest.raises(BadSample, match=r"data\.json:6 \(sample 3\): NaN"):
        rows[2]


@pytest.mark.parametrize("text", ["", "[1, 2", '{"a": 1}', "[1] [2]", "[1]]", "[1] 2", "1", '["a]', "x [1]"])
def test_what_is_no_array(text, tmp_path):
    file = tmp_path / "data.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"data\.json: (not one complete JSON array|the file is empty)"):
        Rows(file)


@pytest.mark.parametrize(("text", "rows"), [("[]", 0), (" [ ]\n", 0), ("[[]]", 1), ("[1,,2]", 3)])
def test_edges_of_arrays(text, rows, tmp_path):
    file = tmp_path / "data.json"
    file.write_text(text)
    assert len(Rows(file)) == rows


@pytest.mark.parametrize("text", ["[1,]", '[{"a": 1},\n ]', "[1, 2,\n]", "[,]"])
def test_a_comma_at_the_end_is_refused(text, tmp_path):
    file = tmp_path / "data.json"
    file.write_text(text)
    line = text.count("\n") + 1
    with pytest.raises(BadInput, match=rf"data\.json:{line}: nothing stands behind the last comma; remove the comma"):
        Rows(file)


def test_rows_are_read_in_any_order_and_after_pickling(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(f'{{"n": {i}}}\r\n' for i in range(500)), newline="")
    rows = Rows(file)
    order = random.Random(0).sample(range(500), 500)
    assert [rows[i]["n"] for i in order] == order
    assert pickle.loads(pickle.dumps(rows))[499] == {"n": 499}


def test_millions_of_quotes_are_scanned_in_linear_time(tmp_path):
    file = tmp_path / "data.json"
    file.write_text('["' + '\\"' * 500_000)
    with pytest.raises(BadInput):
        Rows(file)


tokens = st.sampled_from(
    [
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b'"',
        b"\\",
        b" ",
        b"\n",
        b"a",
        b'"a"',
        b'"\\"',
        b"\v",
        b"1",
        b":",
        b'"],["',
        b"\r\n",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(tokens, max_size=20), st.booleans(), st.integers(1, 5))
def test_an_array_is_the_same_however_it_is_cut_into_pieces(tmp_path_factory, pieces, closed, size):
    file = tmp_path_factory.mktemp("pieces") / "a.json"
    file.write_bytes(b"[" * closed + b"".join(pieces) + b"]" * closed)

    def found(piece):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_lines, "_PIECE", piece)
            try:
                spans = json_lines._elements(file)
            except BadInput as error:
                return str(error)
            return [spans[i] for i in range(len(spans))]

    assert found(size) == found(1 << 18)


@settings(max_examples=150, deadline=None)
@given(values, st.booleans(), st.integers(0, 99), st.binary(min_size=1, max_size=3))
def test_the_fast_way_gives_what_the_strict_one_gives(value, spoiled, at, junk):
    data = bytearray(to_json(value))
    if spoiled:
        at %= len(data)
        data[at : at + 1] = junk

    def read(how):
        try:
            return how(bytes(data), "x")
        except BadSample as error:
            return str(error)

    assert repr(read(parse_written)) == repr(read(parse))


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":1}', "NaN", "[Infinity]", "1e999", '"\\ud800"', "[" * 101 + "]" * 101, "\ufeff1"]
)
def test_the_fast_way_is_as_strict(text):
    with pytest.raises(BadSample):
        parse_written(text.encode(), "x")
