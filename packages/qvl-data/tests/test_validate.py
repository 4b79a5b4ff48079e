"""Run as a program (`python -m tests.test_validate`), this file writes the table in docs/data/validate.md anew."""

import ast
import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import qvl_data.validate as room
from qvl_core.errors import BadInput, QVLError
from qvl_data.cli import app
from qvl_data.dataset import Dataset
from qvl_data.errors import REASONS, SEVERITY, severity
from qvl_data.media import read_bytes
from qvl_data.shards import plan
from qvl_data.validate import Validation, read_findings, validate
from qvl_data.validate.checks import SPECIAL
from qvl_data.walk import Step, steps, walk

from .broken import FIRST, JPEG, KINDS, PNG, boxed, chat, clip, lines, qvl, shown
from .killing import check_every_kill

MEMORY = 150 << 20
"""Bytes that the sweep over all broken data may need on top of the imports."""
PAGE = Path(__file__).parents[3] / "docs/data/validate.md"
SOURCE = Path(room.__file__).parents[1]


def run(*args: Any, code: int = 0) -> None:
    assert app.run([str(arg) for arg in args]) == code


def found(source: Path, **options: Any) -> dict[str, int]:
    """Counts by reason; that nothing states a licence is taken for granted."""
    result = validate(source, **options)
    return {code: reason.count for code, reason in result.reasons.items() if code != "license_missing"}


# --- the corpus -----------------------------------------------------------------------------------------------------

SWEEP = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from peak import peak
from qvl_data.validate import validate
import pyarrow.parquet, qvl_data.tar, qvl_data.formats
from PIL import Image
try:
    import av
except ImportError:
    pass
Image.init()
before = peak()
results = {}
for line in sys.stdin:
    name, source, options = json.loads(line)
    result = validate(Path(source), **options)
    results[name] = {code: reason.first for code, reason in result.reasons.items()}
print(json.dumps({"results": results, "memory": peak() - before}))
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every kind validated in one process of its own: what was found by kind, and the memory that it took."""
    root = tmp_path_factory.mktemp("broken")
    asked = []
    for number, kind in enumerate(KINDS):
        if not all(hasattr(os, need) or find_spec(need) for need in kind.needs):
            continue
        folder = root / str(number)
        folder.mkdir()
        asked.append(json.dumps([kind.name, str(kind.make(folder)), kind.options]))
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, str(Path(__file__).parent)],
        input="\n".join(asked), capture_output=True, text=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {"root": root, **json.loads(done.stdout)}


def test_the_corpus_is_large():
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 100
    assert {kind.reason for kind in KINDS if kind.reason} <= set(REASONS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_broken_data_is_told_by_its_reason(kind, sweep):
    if kind.name not in sweep["results"]:
        pytest.skip(f"needs {', '.join(kind.needs)}")
    reasons = {code: told for code, told in sweep["results"][kind.name].items() if code != "license_missing"}
    assert set(reasons) == ({kind.reason} if kind.reason else set())
    for sentence in chain(*reasons.values()):
        assert sentence.startswith(str(sweep["root"])), "names the file"
        assert "\n" not in sentence
        assert sentence.endswith((".", "?"))


def test_the_sweep_needs_little_memory(sweep):
    assert sweep["memory"] < MEMORY


def test_headers_alone_find_bombs_and_say_nothing_of_pixels(tmp_path):
    for kind in KINDS:
        if "bomb" in kind.name and kind.reason == "image_too_large":
            (folder := tmp_path / kind.name).mkdir()
            assert found(kind.make(folder), pixels=False) == {"image_too_large": 1}, kind.name
    (tmp_path / "cut.jpg").write_bytes(JPEG[: len(JPEG) // 2])
    file = lines(tmp_path, FIRST, shown("cut.jpg"))
    assert found(file, pixels=False) == {}
    assert found(file) == {"image_truncated": 1}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60), max_size=5), st.sampled_from([".jsonl", ".json", ".csv", ".tar", ".parquet"]))
def test_no_bytes_crash_it(tmp_path, pieces, suffix):
    (tmp_path / f"data{suffix}").write_bytes(b"\n".join(pieces))
    assert "unexpected" not in validate(tmp_path / f"data{suffix}").reasons


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_KEYS = ("id", "media", "messages", "regions", "edit", "meta", "extra", "task", "conversations", "image", "images")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([qvl(), FIRST]), st.sampled_from(_KEYS), _JSON), min_size=1, max_size=4))
def test_no_values_crash_it(tmp_path, changes):
    rows = [{**row, key: value} for row, key, value in changes]
    for name in ("qvl", "openai"):
        assert "unexpected" not in validate(lines(tmp_path, *rows), format=name).reasons


# --- reason codes ---------------------------------------------------------------------------------------------------


def codes_in_the_source(below: str = ".") -> set[str]:
    """First arguments of BadSample, TooLong and Finding that are written out."""
    codes = set()
    for file in (SOURCE / below).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("BadSample", "TooLong", "Finding"):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    codes.add(first.value)
    return codes


def test_every_reason_has_its_meaning():
    assert len(codes_in_the_source()) > 40
    assert codes_in_the_source() - set(REASONS) == set()
    assert list(REASONS) == sorted(REASONS)
    assert set(SEVERITY) <= set(REASONS)
    assert (severity("json"), severity("split_leak")) == ("error", "warning")


def test_what_cannot_be_read_is_an_error():
    assert {code for code in codes_in_the_source("formats") if severity(code) != "error"} == set()


def table() -> str:
    rows = [
        f"| `{code}` | {severity(code)} | {meaning.replace('|', chr(92) + '|')} |" for code, meaning in REASONS.items()
    ]
    rows = [row.replace("<", "&lt;") for row in rows]
    return "\n".join(["| Reason | | Meaning |", "|---|---|---|", *rows]) + "\n"


def test_the_page_lists_every_reason():
    assert table() in PAGE.read_text(encoding="utf-8"), "cd packages/qvl-data; python -m tests.test_validate"


def test_special_tokens_are_those_of_the_tokenizer(processor):
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    assert {token for token in special if SPECIAL.fullmatch(token)} == {t for t in special if t.startswith("<|")}


# --- places, sentences, exit codes ----------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two splits: of train's 5 samples two are bad and one has a warning; test shows a picture of train."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "copy.png").write_bytes(PNG)
    (folder / "b.png").write_bytes(PNG[:200])
    lines(
        folder,
        {**shown("a.png"), "id": "a"},
        {**shown("b.png"), "id": "b"},
        {**chat("I see <|image_pad|>."), "id": "c"},
        b"{NaN}",
        {**chat("Fine."), "id": "d"},
        name="train.jsonl",
    )
    lines(folder, {**shown("copy.png"), "id": "e", "note": 1}, {**chat("Another."), "id": "a"}, name="test.jsonl")
    return folder


def test_a_result_in_full(photos):
    result = validate(photos)
    assert (result.samples, result.bad, result.warned) == (7, 3, 2)
    assert result.splits == {"train": 5, "test": 2}
    train, test = photos / "train.jsonl", photos / "test.jsonl"
    assert {code: reason.first for code, reason in result.reasons.items()} == {
        "duplicate_id": [
            f"{test}:2: its id was already given at {train}:1, and ids are unique in a data set; rename one of them."
        ],
        "image_truncated": [
            f"{train}:2: b.png: truncated or damaged picture (image file is truncated); replace the file."
        ],
        "json": [
            f"{train}:4: not valid JSON: Expecting property name enclosed in double quotes at character 2."
        ],
        "license_missing": [
            f"{train}: 4 of 5 samples state no licence; state it (`meta.license`) where you know it.",
            f"{test}: 2 of 2 samples state no licence; state it (`meta.license`) where you know it.",
        ],
        "special_token_in_text": [
            f"{train}:3: messages[1].parts[0] holds <|image_pad|> as text; it is taken for text, not for the token:"
            " remove it, unless that is meant."
        ],
        "split_leak": [
            f"{test}:1: is the same sample as {train}:1, in another split; remove one of them."
        ],
    }  # fmt: skip
    assert Validation.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_exit_codes_and_what_is_printed(photos, tmp_path, capsys):
    run("validate", photos, code=1)
    told = capsys.readouterr().out
    assert "7 samples (decoded), 3 bad, 2 with warnings" in told
    assert told.index("error image_truncated") < told.index("warning special_token_in_text")
    assert f"  {photos / 'train.jsonl'}:2: b.png: truncated" in told
    run("validate", lines(tmp_path, FIRST), "--headers")
    assert "1 samples (headers only), 0 bad" in capsys.readouterr().out
    run("validate", tmp_path / "gone.jsonl", code=2)
    run("validate", photos, "--split", "tran", code=2)
    run("validate", photos, "--max-length", "9", code=2)
    err = capsys.readouterr().err.splitlines()
    assert "gone.jsonl: no such file or folder" in err[0]
    assert 'did you mean "train"?' in err[1]
    assert err[2] == "--max-length counts tokens; name the model's folder with --model."


def test_json(photos, capsys):
    run("validate", photos, "--split", "test", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "qvl.validation/1"
    assert (told["samples"], told["bad"], told["reasons"]["license_missing"]["count"]) == (2, 0, 1)


def test_workers_change_nothing(photos, tmp_path, monkeypatch):
    results = [validate(photos, out=tmp_path / f"{workers}", workers=workers) for workers in (1, 2)]
    assert results[0] == results[1]
    for name in ("findings.jsonl", "validation.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)

    def __call__(self, step: Step) -> None: ...


def test_a_worker_that_dies_is_told_in_one_sentence():
    todo = steps({"train": range(10)}, 1)
    with pytest.raises(QVLError, match=r"a worker died at train 0\.\.0 or soon after .* --workers 1"):
        list(walk(Fatal(), todo, workers=2))


def test_findings_stand_in_the_order_of_the_data(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "STEP", 2)  # several steps
    result = validate(photos, out=tmp_path / "out")
    monkeypatch.undo()
    assert result == validate(photos)
    findings = list(read_findings(tmp_path / "out/findings.jsonl"))
    assert [(f.split, f.index, f.reason) for f in findings] == [
        ("train", -1, "license_missing"), ("test", -1, "license_missing"), ("train", 1, "image_truncated"),
        ("train", 2, "special_token_in_text"), ("train", 3, "json"), ("test", 0, "split_leak"),
        ("test", 1, "duplicate_id"),
    ]  # fmt: skip
    assert (findings[2].id, findings[4].id) == ("b", "")


def test_a_missing_extra_is_told_as_such(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 100)
    monkeypatch.setitem(sys.modules, "av", None)
    file = lines(tmp_path, chat(question=[{"type": "video", "video": "clip.mp4"}]))
    with pytest.raises(BadInput, match=r'pip install "qvl-data\[video\]"'):
        validate(file)


def test_lengths_with_a_model(tmp_path, processor):
    pytest.importorskip("tokenizers")
    processor.save_pretrained(tmp_path / "model")
    file = lines(tmp_path, FIRST, chat("word " * 300))
    assert found(file, model=tmp_path / "model") == {}
    assert found(file, model=tmp_path / "model", max_length=100) == {"too_long": 1}
    for name in ("gone.png", "broken.png"):
        (tmp_path / "broken.png").write_bytes(PNG[:20])
        file = lines(tmp_path, shown(name))
        assert list(found(file, model=tmp_path / "model").values()) == [1]


# --- quarantine and the clean set -----------------------------------------------------------------------------------


def test_bad_rows_go_verbatim_into_quarantine(photos, tmp_path):
    before = {file.name: file.read_bytes() for file in photos.iterdir()}
    validate(photos, quarantine=tmp_path / "bad")
    source = (photos / "train.jsonl").read_bytes().splitlines()
    assert (tmp_path / "bad/train.jsonl").read_bytes().splitlines() == [source[1], source[3]]
    reasons = [json.loads(line) for line in (tmp_path / "bad/reasons/train.jsonl").read_text("utf-8").splitlines()]
    assert [(r["line"], r["place"], r["id"], r["reasons"]) for r in reasons] == [
        (1, f"{photos / 'train.jsonl'}:2", "b", ["image_truncated"]),
        (2, f"{photos / 'train.jsonl'}:4", "", ["json"]),
    ]
    assert {file.name: file.read_bytes() for file in photos.iterdir()} == before
    assert found(tmp_path / "bad/train.jsonl", media_root=photos) == {"image_truncated": 1, "json": 1}


def test_rows_of_tables_go_into_quarantine_as_json(tmp_path):
    from qvl_data.parquet import write_parquet
    from qvl_data.sample import read_sample

    file = tmp_path / "data.parquet"
    rows = [{**qvl(), "id": "1"}, boxed(900, 10, 920, 40)]
    write_parquet(map(read_sample, rows), file)
    assert validate(file, quarantine=tmp_path / "bad").bad == 1
    (row,) = map(json.loads, (tmp_path / "bad/data.jsonl").read_bytes().splitlines())
    assert row["regions"][0]["xy"] == [900, 10, 920, 40]
    assert row["media"][0]["bytes"]["base64"] == qvl()["media"][0]["bytes"]


def test_an_array_and_a_line_that_is_too_long(tmp_path):
    (tmp_path / "data.json").write_text('[\n{"a":\n NaN},\n 7]', encoding="utf-8", newline="\n")
    validate(tmp_path / "data.json", quarantine=tmp_path / "array")
    assert (tmp_path / "array/data.jsonl").read_bytes() == b'{"a":  NaN}\n7\n'
    file = lines(tmp_path, FIRST, b'"' + b"a" * (17 << 20) + b'"', b"[]")
    validate(file, quarantine=tmp_path / "long")
    assert (tmp_path / "long/data.jsonl").read_bytes() == b"[]\n"
    reasons = [json.loads(line) for line in (tmp_path / "long/reasons/data.jsonl").read_text("utf-8").splitlines()]
    assert [reason["line"] for reason in reasons] == [None, 1]


def test_a_clean_set(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    media = {"kind": "image", "path": "a.png", "width": 640, "height": 480}
    answer = {"role": "assistant", "parts": [{"type": "text", "text": "Two."}]}
    lines(
        folder,
        qvl(id="fine"),
        qvl(id="sized", media=[media]),
        b"\xef\xbb\xbf" + json.dumps(qvl(id="marked")).encode(),
        qvl(id="fine", messages=[qvl()["messages"][0], answer]),
        {**boxed(50.0, 10.0, 70.0, 40.0), "id": "over"},
        {**boxed(100.0, 10.0, 120.0, 40.0), "id": "outside"},
        {**boxed(1.0, 1.0, 2.0, 2.0), "id": "both", "media": [media]},
        b"{",
        qvl(id="fine-4"),
        name="train.jsonl",
    )  # fmt: skip
    result = validate(folder, fix_to=tmp_path / "clean")
    assert (result.mended, result.left_out) == (4, 3)
    clean = Dataset(tmp_path / "clean", "train")
    ids = [sample.id for sample in clean]
    assert ids == ["fine", "sized", "marked", "fine-4-2", "over", "fine-4"]
    assert clean[4].regions[0].xy == (50, 10, 64, 40)
    assert (clean[1].media[0].width, clean[1].media[0].height) == (64, 48)
    assert validate(tmp_path / "clean").bad == 0
    place = folder / "train.jsonl"
    assert (tmp_path / "clean/fixes.txt").read_text("utf-8").splitlines() == [
        f"{place}:2: media[0] is 64 x 48 pixels, no longer 640 x 480",
        f"{place}:3: the byte order mark was left away",
        f"{place}:4: id 'fine' is now 'fine-4-2'",
        f"{place}:5: regions[0] [50.0, 10.0, 70.0, 40.0] is cut to [50.0, 10.0, 64.0, 40.0]",
        f"{place}:6: left out: regions[0]: box [100, 10, 120, 40] lies outside its picture of 64 x 48 pixels; is it in"
        " another space, or not upright?",
        f"{place}:7: left out: regions were drawn for a picture of another size; correct both.",
        f"{place}:8: left out: not valid JSON: Expecting property name enclosed in double quotes at character 2.",
    ]


def test_videos_go_along_into_the_clean_set(tmp_path):
    pytest.importorskip("av", reason='videos need the extra "video"')
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    (folder / "clips/1.mp4").write_bytes(clip())
    lines(folder, chat(question=[{"type": "video", "video": "clips/1.mp4"}]), b"{")
    assert validate(folder, fix_to=tmp_path / "clean").left_out == 1
    assert found(tmp_path / "clean") == {}
    assert (tmp_path / "clean/clips/1.mp4").read_bytes() == (folder / "clips/1.mp4").read_bytes()


def test_videos_of_one_name_are_not_swapped_in_the_clean_set(tmp_path, monkeypatch):
    """Splits with a `video/1.mp4` each, and a name that data must not choose."""
    pytest.importorskip("av", reason='videos need the extra "video"')
    contents = {"train": clip(), "test": clip(11), "odd": clip(10)}
    for split, content in contents.items():
        name = "run.sh" if split == "odd" else "video/1.mp4"
        (tmp_path / split / "video").mkdir(parents=True)
        (tmp_path / split / name).write_bytes(content)
        lines(tmp_path / split, chat(question=[{"type": "video", "video": name}], id=split))
    splits = {split: f"{split}/data.jsonl" for split in contents}
    (tmp_path / "datasets.yaml").write_text(json.dumps({"datasets": {"clips": {"splits": splits}}}), encoding="utf-8")
    monkeypatch.setenv("QVL_REGISTRY", str(tmp_path / "datasets.yaml"))
    run("validate", "clips", "--fix-to", tmp_path / "clean")
    for split, content in contents.items():
        (sample,) = Dataset(tmp_path / "clean", split)
        assert read_bytes(sample.media[0], tmp_path / "clean") == content
    assert not (tmp_path / "clean/run.sh").exists()


def test_a_finished_run_does_nothing_and_others_are_refused(photos, tmp_path, monkeypatch):
    places = {"out": tmp_path / "out", "quarantine": tmp_path / "bad", "fix_to": tmp_path / "clean"}
    first = validate(photos, **places)
    with monkeypatch.context() as patch:
        for name in ("check", "open_data"):
            patch.setattr(room, name, lambda *_, **__: pytest.fail("done again"))
        assert validate(photos, **places) == first
    with pytest.raises(BadInput, match="holds the output of another command"):
        validate(photos, **places, pixels=False)
    with pytest.raises(BadInput, match="holds something else already"):
        validate(photos, out=photos)
    with pytest.raises(BadInput, match="lies inside the data"):
        validate(photos, out=photos / "report")
    with (photos / "test.jsonl").open("ab") as file:
        file.write(json.dumps({**chat("New."), "id": "new"}).encode() + b"\n")
    with pytest.raises(BadInput, match=r"has changed since .* --fresh"):
        validate(photos, **places)
    again = validate(photos, **places, fresh=True)
    assert again.samples == 8
    (tmp_path / "clean/train.parquet").unlink()
    assert validate(photos, **places) == again
    assert (tmp_path / "clean/train.parquet").is_file()


def test_starting_over_leaves_no_shards_of_an_earlier_run(photos, tmp_path, monkeypatch):
    places = {"quarantine": tmp_path / "bad", "fix_to": tmp_path / "clean"}
    monkeypatch.setattr("qvl_data.validate.mend.plan", partial(plan, size=2))
    validate(photos, **places)
    monkeypatch.undo()
    assert len(list((tmp_path / "clean").glob("train-*.parquet"))) == 3
    lines(photos, FIRST, name="train.jsonl")
    validate(photos, **places, fresh=True)
    assert sorted(file.name for file in (tmp_path / "clean").glob("*.parquet")) == ["test.parquet", "train.parquet"]
    assert sorted(file.name for file in (tmp_path / "bad").rglob("*.jsonl") if ".validate" not in file.parts) == []


def test_an_interrupted_run_goes_on_where_it_was(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "STEP", 1)
    check = room.Work.__call__
    seen: list[str] = []

    def stopped(self: Any, step: Any) -> Any:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(str(step))
        return check(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(room.Work, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            validate(photos, out=tmp_path / "out")
        seen[:] = ["x", "x"]  # the last two of seven, and one more
        with pytest.raises(KeyboardInterrupt):
            validate(photos, out=tmp_path / "out")
        assert seen[2:] == ["train 4..4", "test 0..0"]
    assert validate(photos, out=tmp_path / "out") == validate(photos)


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_nothing(photos, tmp_path):
    lines(photos, {**boxed(50.0, 10.0, 70.0, 40.0), "id": "x"}, b"{", name="test.jsonl")  # to mend, and to leave out

    def command(out: Path) -> list[str]:
        places = ["--out", str(out / "o"), "--quarantine", str(out / "q"), "--fix-to", str(out / "f")]
        return ["validate", str(photos), *places]

    assert check_every_kill(command, tmp_path / "kills", code=1) > 30


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    start = page.index("| Reason |")
    PAGE.write_text(page[:start] + table(), encoding="utf-8", newline="\n")
