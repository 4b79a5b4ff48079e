import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Source
from qvl_data import registry
from qvl_data.cli import app
from qvl_data.dataset import Dataset
from qvl_data.register import read_data_dict
from qvl_data.registry import Entry, Registry
from qvl_data.sources import Mixture

ROWS = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "x"}]} for n in range(8)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: data/{train,test}.jsonl of 8 and 4 samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QVL_REGISTRY", raising=False)
    Path("data").mkdir()
    for name, count in (("train", 8), ("test", 4)):
        lines = "".join(json.dumps(row) + "\n" for row in ROWS[:count])
        Path(f"data/{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def write(text, file="datasets.yaml"):
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text(text, encoding="utf-8")


def run(*args, code=0):
    assert app.run(["registry", *map(str, args)]) == code


def test_names_stand_for_paths_in_every_source(here):
    write("datasets:\n  receipts: {path: data}\n  plates: {splits: {train: data/train.jsonl, dev: data/test.jsonl}}\n")
    mix = Mixture("receipts%50 + 2*plates + data/test.jsonl")
    assert mix.draws == (4, 16, 4)
    assert [dataset.file for dataset in mix.datasets] == list(
        map(Path, ("data/train.jsonl", "data/train.jsonl", "data/test.jsonl"))
    )
    assert len(Mixture("receipts[test]")) == len(Mixture("receipts", "test")) == 4
    assert len(Mixture("plates", "validation")) == 4  # dev is validation
    assert len(Mixture("receipts[train:5,test:2]", "test")) == 2
    with pytest.raises(BadInput, match='plates: no split "test"; available: train, dev'):
        Mixture("plates", "test")


def test_one_entry_for_one_split(here):
    write("datasets: {receipts: {path: data, split: test}}")
    assert len(Mixture("receipts")) == 4
    assert len(Mixture("receipts[train]")) == 8
    parts = [Mixture("receipts[train:3,test:1]", name) for name in ("train", "test")]
    assert [len(mix) for mix in parts] == [3, 1]
    assert not {item.index for item in parts[0].items()} & {item.index for item in parts[1].items()}


def test_what_an_entry_says_holds_unless_the_source_says_otherwise(here):
    row = {"frage": "?", "antwort": "x"}
    write(json.dumps(row) + "\n", "flat/train.jsonl")
    write("datasets: {flat: {path: ../flat, map: {user: frage, assistant: antwort}, media_root: ..}}", "names/r.yaml")
    names = Registry("names/r.yaml")
    mix = Mixture("flat", registry=names, media_root="data")
    assert mix.sample(mix.item(0)).messages[1].text == "x"
    assert mix.datasets[0].opener.root == Path("names/..")  # the entry's own, from the folder of the registry
    swapped = Mixture([Source(source="flat", map={"user": "antwort", "assistant": "frage"})], registry=names)
    assert swapped.sample(swapped.item(0)).messages[1].text == "?"


def test_a_fingerprint_sees_how_an_entry_is_read(here):
    found = set()
    for more in ("", ", format: openai", ", augment: {shift: 1}", ", license: MIT"):
        write(f"datasets: {{receipts: {{path: data{more}}}}}")
        found.add(Mixture("receipts").fingerprint())
    assert len(found) == 3  # the licence does not matter


def test_augmentation_of_an_entry_is_for_training(here):
    write("datasets: {receipts: {path: data, augment: {shift: 2}}}")
    assert Mixture("receipts")._rules[0].shift == 2
    assert Mixture("receipts", "test")._rules[0] is None
    own = Source(source="receipts", augment={"flip": 1.0})
    assert (Mixture([own])._rules[0].shift, Mixture([own])._rules[0].flip) == (0, 1)


def test_where_the_registry_is_found(here, monkeypatch):
    assert registry.find() is None
    assert list(Registry()) == []
    write("datasets: {a: {path: data}}")
    write("datasets: {b: {path: ../data}}", "names/r.yaml")
    assert list(Registry()) == ["a"]
    monkeypatch.setenv("QVL_REGISTRY", "names/r.yaml")
    assert list(Registry()) == ["b"]
    assert len(Mixture("b")) == 8
    assert list(Registry("datasets.yaml")) == ["a"]
    with pytest.raises(BadInput, match=r"no\.yaml: there is no such registry file"):
        Registry("no.yaml")
    monkeypatch.setenv("QVL_REGISTRY", "gone.yaml")
    with pytest.raises(BadInput, match=r"QVL_REGISTRY=gone\.yaml: there is no such registry file"):
        Registry()


def test_a_changed_file_is_read_again(here):
    write("datasets: {a: {path: data}}")
    assert list(Registry()) == ["a"]
    write("datasets: {bb: {path: data}}")
    assert list(Registry()) == ["bb"]


def test_a_name_that_is_also_a_path_is_refused_unless_they_are_the_same(here):
    write("datasets: {data: {path: data}}")
    assert len(Mixture("data")) == 8
    write("datasets: {data: {path: data/test.jsonl}}")
    with pytest.raises(BadInput, match=r"data: a registered data set \(datasets\.yaml\) and a path are both called so"):
        Mixture("data")
    assert len(Mixture("./data")) == 8


def test_unknown_names(here):
    write("datasets: {receipts: {path: data}}")
    with pytest.raises(BadInput, match=r'reciepts: no registered data set, file or folder .* did you mean "receipts"'):
        Mixture("reciepts")
    with pytest.raises(BadInput, match="xyz: no such file or folder"):
        Mixture("xyz")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("datasets:\n  a: {path: x, fromat: y}", ['2: unknown key "datasets.a.fromat"; did you mean']),
        ("dataset:\n  a: {path: x}", ['1: unknown key "dataset"; did you mean "datasets"?']),
        ("datasets:\n  a: {format: qvl}", ["2: datasets.a: give exactly one of `path` and `splits`."]),
        ("datasets:\n  a: {splits: {}}", ["2: datasets.a: `splits` names no file."]),
        ("datasets:\n  a: {splits: {b: c}, split: b}", ["2: datasets.a: `split` chooses from the folder"]),
        ("datasets:\n  a: {path: x}\n  a: {path: y}", ['3: duplicate key "a" (first on line 2); keep one']),
        ("datasets:\n  a: !!python/object x", ["2: the tag tag:yaml.org,2002:python/object has no place in a recipe"]),
        ("datasets:\n  a: [x", ["not YAML"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_file_has_its_line(here, text, sentences):
    write(text)
    with pytest.raises(BadInput) as caught:
        Registry()
    lines = str(caught.value).splitlines()
    assert len(lines) == len(sentences)
    for line, sentence in zip(lines, sentences, strict=True):
        assert line.startswith("datasets.yaml")
        assert sentence in line


def packaged(monkeypatch, fields):
    """An installed package that registers `plates`."""
    point = EntryPoint("plates", "some.module:plates", registry.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: fields)
    monkeypatch.setattr(registry, "_entry_points", lambda: (point,))


def test_packages_register_names(here, monkeypatch):
    path = str(here / "data")
    for fields in ({"path": path}, Entry(path=path), lambda: {"path": path}):
        packaged(monkeypatch, fields)
        assert len(Mixture("plates")) == 8
    write("datasets: {plates: {path: data/test.jsonl}}")
    assert len(Mixture("plates")) == 4  # the file comes first


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"path": "data"}, "the path data is relative; give an absolute one"),
        ({"pth": "/x"}, "pth: Extra inputs are not permitted"),
        (lambda: 1 / 0, r"cannot be loaded \(ZeroDivisionError"),
    ],
)
def test_wrong_entry_points(here, monkeypatch, fields, sentence):
    packaged(monkeypatch, fields)
    with pytest.raises(BadInput, match=f"entry point plates = some.module:plates: {sentence}"):
        Registry()["plates"]


def test_add_list_show_check(here, capsys):
    run("add", "receipts", "data", "--license", "CC-BY-4.0", "--media-root", "data")
    assert (
        "receipts: data/test.jsonl: 4 samples (openai); data/train.jsonl: 8 samples (openai)" in capsys.readouterr().out
    )
    text = Path("datasets.yaml").read_text(encoding="utf-8")
    assert text == "datasets:\n  receipts: {path: data, media_root: data, license: CC-BY-4.0}\n"
    run("list")
    assert "receipts" in capsys.readouterr().out
    run("show", "receipts")
    assert "license: CC-BY-4.0" in capsys.readouterr().out
    run("check")
    run("add", "receipts", "data", code=2)
    run("add", "other", "nowhere", code=2)
    run("show", "reciepts", code=2)
    errors = capsys.readouterr().err.splitlines()
    assert 'datasets.yaml: "receipts" is already there' in errors[0]
    assert "nowhere: no such file or folder" in errors[1]
    assert errors[2] == 'no data set is registered as "reciepts"; did you mean "receipts"?'
    assert Path("datasets.yaml").read_text(encoding="utf-8") == text
    Path("data/test.jsonl").write_text("{", encoding="utf-8")
    run("check", code=2)
    assert "receipts: WRONG: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# mine\ndatasets:\n    a:  # first\n        path: x\n\n# end\n", "    b: {path: data}\n"),
        ("datasets:\n  a: {path: x}", "  b: {path: data}\n"),
        ("datasets:\n", "  b: {path: data}\n"),
        ("# nothing yet\n", "datasets:\n  b: {path: data}\n"),
    ],
)
def test_adding_keeps_what_is_there(here, before, after):
    write(before)
    run("add", "b", "data")
    text = Path("datasets.yaml").read_text(encoding="utf-8")
    assert after in text
    assert [line for line in text.splitlines() if line not in after.splitlines()] == [
        line for line in before.splitlines() if line not in after.splitlines()
    ]
    assert "b" in Registry()


def test_a_file_that_cannot_be_added_to(here, capsys):
    write("datasets: {a: {path: x}}")
    run("add", "b", "data", code=2)
    assert "add these lines by hand:\n  b: {path: data}" in capsys.readouterr().err
    assert Path("datasets.yaml").read_text(encoding="utf-8") == "datasets: {a: {path: x}}"


DATA_DICT = """\
import re
open("/tmp/never", "w").write(str(1 / 0))

CAMBRIAN: dict = {
    "annotation_path": "PATH/train.jsonl",
    "data_path": "",
}
data_dict = {
    "cambrian": CAMBRIAN,
    "receipts": {"annotation_path": "/far/receipts.json", "data_path": "photos"},
}

def parse_sampling_rate(dataset_name): ...
"""


def test_the_data_dict_of_qwen_is_read_not_run(here, capsys):
    Path("init.py").write_text(DATA_DICT.replace("PATH", "data"), encoding="utf-8")
    run("import", "init.py", "--registry", "names.yaml")
    names = Registry("names.yaml")
    assert names["cambrian"].entry == Entry(path="data/train.jsonl", format="qwenvl")
    assert names["receipts"].entry == Entry(path="/far/receipts.json", format="qwenvl", media_root="photos")
    Path("sub").mkdir()
    assert read_data_dict(Path("init.py"), Path("sub"))["cambrian"].path == "../data/train.jsonl"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1", "has no data_dict"),
        ("data_dict = dict(a=1)", "has no data_dict"),
        ("data_dict = {", ":1: not Python"),
        ('\ndata_dict = {"a": load()}', ":2: not written out as a plain text or dict, and nothing is run"),
        ('data_dict = {"a": {"annotation_path": base + "x"}}', ":1: not written out"),
        ('data_dict = {"a": {"annotation_path": f"{x}"}}', ":1: not written out"),
        ('data_dict = {"a": {"data_path": "x"}}', ':1: "a" needs an annotation_path'),
        ('data_dict = {"a": {"annotation_path": "x", "repeat": 3}}', ":1: \"a\" has 'repeat'"),
        ("data_dict = {**other}", ":1: "),
        ('data_dict = {"a": ' + "(" * 5000 + ")" * 5000 + "}", ":"),
        ("\0", ""),
    ],
)
def test_what_is_no_data_dict(here, text, sentence):
    Path("init.py").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        read_data_dict(Path("init.py"), Path())
    assert f"init.py{sentence}" in str(caught.value).replace("init.py: has", "init.pyhas")


def test_recipes_of_training_resolve_names(here):
    write("datasets: {receipts: {path: data}}")
    assert len(Mixture([Source(source="receipts", take=3)], "train")) == 3


def test_registered_names_are_sources_of_every_verb(here, capsys):
    write("datasets:\n  receipts: {path: data}\n  plates: {splits: {train: data/train.jsonl, dev: data/test.jsonl}}\n")
    for name in ("receipts", "plates"):
        assert app.run(["validate", name]) == 0
        assert f"{name}: 12 samples" in capsys.readouterr().out
        assert app.run(["stats", name]) == 0
        assert app.run(["convert", name, f"out/{name}"]) == 0
        assert app.run(["dedup", name, "--out", f"clean/{name}", "--compare", "text"]) == 0
        assert app.run(["audit", name, "--out", f"{name}.html"]) == 0
        capsys.readouterr()
    assert sorted(path.name for path in Path("out/plates").glob("*.parquet")) == ["dev.parquet", "train.parquet"]
    assert app.run(["validate", "reciepts"]) == 2
    assert 'did you mean "receipts"?' in capsys.readouterr().err


def test_the_licence_of_an_entry_is_that_of_samples_that_state_none(here, capsys):
    own = [{**ROWS[0], "id": "own"}, ROWS[1]]
    write("".join(json.dumps(row) + "\n" for row in own), "some/train.jsonl")
    assert app.run(["convert", "some", "stated", "--license", "CC0-1.0"]) == 0
    write("datasets:\n  some: {path: some, license: MIT}\n  stated: {path: stated, license: MIT}\n")
    assert {sample.meta.license for sample in Mixture("some").datasets[0]} == {"MIT"}
    assert {sample.meta.license for sample in Mixture("stated").datasets[0]} == {"CC0-1.0"}
    assert app.run(["validate", "some"]) == 0
    assert "license_missing" not in capsys.readouterr().out
    assert app.run(["validate", "some/train.jsonl"]) == 0
    assert "license_missing" in capsys.readouterr().out
    assert app.run(["mix", "some%50 + stated", "--out", "mixed"]) == 0
    assert "Licences: CC0-1.0 2, MIT 1." in Path("mixed/README.md").read_text(encoding="utf-8")
    assert app.run(["convert", "some", "out"]) == 0
    assert {sample.meta.license for sample in Dataset("out", "train")} == {"MIT"}


BROKEN = ["datasets: [other, tool]", "a: {b", "datasets:\n  x: {url: http://x}"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("text", BROKEN)
def test_a_path_that_is_there_needs_no_registry(here, text, named, monkeypatch, capsys):
    write(text, "names/r.yaml" if named else "datasets.yaml")
    if named:
        monkeypatch.setenv("QVL_REGISTRY", "names/r.yaml")
    for args in (
        ["stats", "data"],
        ["validate", "data/train.jsonl"],
        ["convert", "data", "out"],
        ["dedup", "data", "--dry-run", "--compare", "text"],
        ["audit", "data", "--out", "r.html"],
        ["view", "data", "--split", "test"],
        ["mix", "data%50 + data/test.jsonl", "--dry-run"],
        ["validate", "data/train.jsonl%50"],
    ):
        assert app.run(args) == 0, args
    capsys.readouterr()
    assert app.run(["validate", "receipts"]) == 2
    assert ("r.yaml" if named else "datasets.yaml") in capsys.readouterr().err


def test_a_registry_that_is_not_there_is_told_where_a_name_needs_it(here, monkeypatch, capsys):
    monkeypatch.setenv("QVL_REGISTRY", "gone.yaml")
    assert app.run(["validate", "data"]) == 0
    assert app.run(["validate", "receipts"]) == 2
    assert "QVL_REGISTRY=gone.yaml: there is no such registry file" in capsys.readouterr().err
    assert app.run(["mix", "data", "--dry-run", "--registry", "no.yaml"]) == 2
    assert "no.yaml: there is no such registry file" in capsys.readouterr().err


def test_the_registry_of_the_variable_is_used_by_every_verb(here, monkeypatch, capsys):
    write("datasets: {receipts: {path: ../data}}", "names/r.yaml")
    monkeypatch.setenv("QVL_REGISTRY", "names/r.yaml")
    for args in (["validate", "receipts"], ["stats", "receipts%50"], ["view", "receipts[test]"]):
        assert app.run(args) == 0
    assert "receipts: 12 samples" in capsys.readouterr().out
    write("datasets: {data: {path: test.jsonl}}", "data/r.yaml")
    monkeypatch.setenv("QVL_REGISTRY", "data/r.yaml")
    assert app.run(["validate", "data"]) == 2
    assert 'write "./data" for the path' in capsys.readouterr().err
    assert app.run(["validate", "./data"]) == 0
