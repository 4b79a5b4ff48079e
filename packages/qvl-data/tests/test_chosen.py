"""Text that chooses among data (`digits%50`, `a + b`) means the same to every verb that reads."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from qvl_core.errors import BadInput
from qvl_data.chosen import Chosen, sources_in
from qvl_data.cli import app
from qvl_data.dataset import Dataset
from qvl_data.sources import Mixture
from qvl_data.validate import validate
from qvl_data.walk import open_split, open_splits


def chat(name: str, number: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"{name} {number}?"}, {"role": "assistant", "content": str(number)}]
    return {"id": f"{name}{number}", "messages": turns}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a/{train,test}.jsonl of 20 and 10 chats, b/{train,validation}.jsonl of 6, one.jsonl of 8."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QVL_REGISTRY", raising=False)
    for name, count in {"a/train": 20, "a/test": 10, "b/train": 6, "b/validation": 6, "one": 8}.items():
        lines(f"{name}.jsonl", [chat(name, number) for number in range(count)])
    return tmp_path


def lines(file: str, rows: list[Any]) -> None:
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sizes(text: str, split: str | None = None) -> dict[str, int]:
    sets, broken = open_splits(text, split)
    assert not broken
    return {name: len(data) for name, data in sets.items()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a%50", {"test": 5, "train": 10}),
        ("a[train:15,test:5]", {"train": 15, "test": 5}),
        ("a[train]", {"train": 20}),
        ("a[test]%50", {"test": 5}),
        ("one.jsonl%25", {"one": 2}),
        ("one.jsonl[train:5,test:3]", {"train": 5, "test": 3}),
        ("a + b", {"train": 26, "test": 10, "validation": 6}),
        ("a%50 + b%50", {"test": 5, "train": 13, "validation": 3}),
        ("one.jsonl + b/train.jsonl", {"train": 14}),
        ("a + one.jsonl", {"train": 28, "test": 10}),
        ("a[test] + one.jsonl", {"test": 10, "train": 8}),
        ("'one.jsonl'", {"one": 8}),
    ],
)
def test_the_lists_of_a_text(here: Path, text: str, found: dict[str, int]) -> None:
    assert sizes(text) == found


def test_a_list_is_what_a_mixture_of_its_name_chooses(here: Path) -> None:
    for text in ("a%50 + b", "one.jsonl[train:5,test:3]", "a%30"):
        sets, _ = open_splits(text)
        for name, data in sets.items():
            text_of_list = "a%50" if (text, name) == ("a%50 + b", "test") else text
            if (text, name) == ("a%50 + b", "validation"):
                text_of_list = "b"
            mixture = Mixture(text_of_list, name)
            assert [sample.id for sample in data] == [mixture.sample(item).id for item in mixture.items()]


def test_a_chosen_set_is_a_data_set(here: Path) -> None:
    data = open_split("one.jsonl%50 + a/test.jsonl")
    assert isinstance(data, Chosen)
    again = pickle.loads(pickle.dumps(data))
    assert [sample.to_dict() for sample in again] == [sample.to_dict() for sample in data]
    assert (data[-1].id, data[13].id, len(data)) == ("a/test9", "a/test9", 14)
    assert [data.rows.place(index) for index in (4, 13)] == ["a/test.jsonl:1", "a/test.jsonl:10"]
    assert data.outline(13).id == data.rows[13]["id"] == "a/test9"
    assert data.files == (Path("one.jsonl"), Path("a/test.jsonl"))
    assert data.read(data.rows[13], "a/test.jsonl:10").id == "a/test9"
    with pytest.raises(IndexError):
        data[14]
    assert b"".join(data.digests()) != b"".join(open_split("one.jsonl%25 + a/test.jsonl").digests())


def test_what_is_whole_is_the_data_itself(here: Path) -> None:
    assert type(open_split("a[test]")) is type(open_split("a/test.jsonl")) is Dataset


def test_splits_are_named(here: Path) -> None:
    assert sizes("a%50 + b", "train") == {"train": 16}
    assert sizes("a + b", "validation") == {"validation": 6}
    with pytest.raises(BadInput, match=r'a%50 \+ b: no split "dev"; available: test, train, validation'):
        open_splits("a%50 + b", "dev")


def test_a_path_that_is_there_is_one(here: Path) -> None:
    for name in ("a+b.jsonl", "x%50.jsonl", "a[1].jsonl", "two words.jsonl"):
        lines(name, [chat("x", 0)])
        assert sizes(name) == {Path(name).stem: 1}
        assert app.run(["validate", name]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothere%50", "nothere: no such file or folder"),
        ("one.jsonl%50 + no.jsonl", "no.jsonl: no such file or folder"),
        ("one.jsonl%", "no such file or folder, and no text that names sources: .* a number is missing"),
        ("one[1].jsonl", r"one\[1\]\.jsonl: no such file or folder, and no text that names sources"),
        ("2*a", r'every sample is read once here.*qvl-data mix "2\*a" --out DIR'),
        ("a%300 + b", r'qvl-data mix "a%300 \+ b" --out DIR'),
        ("a[train:5]%50", "a: `parts` and a `percent` below 100 exclude each other"),
    ],
)
def test_what_cannot_be_read(here: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        open_splits(text)


def test_very_long_texts(here: Path) -> None:
    assert sizes(" + ".join(["one.jsonl"] * 60)) == {"train": 480}


def test_every_verb_that_reads_takes_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a%50 + one.jsonl"
    for args in (
        ["stats", text],
        ["validate", text, "--out", "v", "--quarantine", "q", "--fix-to", "f"],
        ["convert", text, "out"],
        ["dedup", text, "--out", "clean", "--against", "b[train]%50"],
        ["audit", text, "--out", "r.html"],
        ["view", text, "3", "--split", "train"],
    ):
        assert app.run(args) == 0, args
    assert "23 samples" in capsys.readouterr().out
    assert [len(Dataset(folder, "train")) for folder in ("out", "clean", "f")] == [18, 18, 18]
    other = "a%60 + one.jsonl"
    for args in (
        ["validate", other, "--out", "v", "--quarantine", "q", "--fix-to", "f"],
        ["convert", other, "out"],
        ["dedup", other, "--out", "clean", "--against", "b[train]%50"],
        ["dedup", text, "--out", "clean", "--against", "b[train]%60"],
        ["audit", other, "--out", "r.html"],
    ):
        assert app.run(args) == 2
        assert "holds the output of another command" in capsys.readouterr().err


def test_marks_are_of_whole_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--write-clean", "clean.parquet"], ["--port", "0"]):
        assert app.run(["view", "one.jsonl%50", *more]) == 2
        assert "marks belong to samples of one file or split" in capsys.readouterr().err
    assert app.run(["view", "a[test]", "--write-clean", "clean.parquet"]) == 0
    assert len(Dataset("clean.parquet")) == 10


def test_bad_rows_of_every_source_are_found_and_kept_verbatim(here: Path) -> None:
    Path("bad.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(chat("bad", 0)).encode() + b"\n{x\n")
    with Path("bad.jsonl").open("ab") as file:
        file.write(json.dumps(chat("bad", 1)).encode())
    lines("odd.jsonl", [{"x": 1}])
    places = {"out": Path("v"), "quarantine": Path("q"), "fix_to": Path("f")}
    found = validate("one.jsonl + bad.jsonl + odd.jsonl", **places)
    assert (found.samples, found.bad, found.mended, found.left_out) == (12, 3, 1, 2)
    assert Path("q/train.jsonl").read_bytes().splitlines()[1:] == [b"{x", b'{"x": 1}']
    assert [sample.id for sample in Dataset("f", "train")][-2:] == ["bad0", "bad1"]


def test_what_is_written_lies_outside_of_all_that_is_read(here: Path) -> None:
    with pytest.raises(BadInput, match="lies inside the data that is read"):
        validate("one.jsonl + a%50", out=Path("a/report"))


def test_formats_and_columns_hold_for_all_sources(here: Path) -> None:
    for name in "xy":
        Path(f"{name}.csv").write_text(f"q,a\n{name},1\n", encoding="utf-8")
    data = open_split("x.csv + y.csv", columns={"user": "q", "assistant": "a"})
    assert [sample.messages[0].text for sample in data] == ["x", "y"]
    with pytest.raises(BadInput, match='unknown format "flut"; did you mean "flat"'):
        open_split("x.csv + y.csv", format="flut")


def test_registered_names_in_texts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("names").mkdir()
    entries = "ay: {path: ../a, license: MIT}, single: {path: ../one.jsonl}, 'x + y': {path: ../b}"
    Path("names/r.yaml").write_text(f"datasets: {{{entries}}}", encoding="utf-8")
    monkeypatch.setenv("QVL_REGISTRY", "names/r.yaml")
    assert sizes("ay%50 + single") == {"test": 5, "train": 18}
    assert sizes("single%50") == {"single": 4}
    assert sizes("x + y") == {"train": 6, "validation": 6}
    assert {sample.meta.license for sample in open_splits("ay%50")[0]["test"]} == {"MIT"}


def test_names_of_the_hub_are_no_texts(here: Path) -> None:
    assert sources_in("owner/name") is None
    assert sources_in("owner/name:config") is None
    assert sources_in("C:\\data\\x.jsonl") is None
