"""A failed command blocks no corrected one, and all that decides about an output is a part of its request."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qvl_core.errors import BadInput
from qvl_data.audit import audit
from qvl_data.cli import app
from qvl_data.dataset import Dataset
from qvl_data.pack import Plan, pack_source
from qvl_data.sources import Mixture
from qvl_data.validate import read_findings
from qvl_data.view import Marks, write_clean

from .chats import picture, write_png

TURNS = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "That."}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: qv.jsonl, whose pictures (in two versions) lie below p/A and p/B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QVL_REGISTRY", raising=False)
    for number, name in enumerate("AB"):
        for one in range(3):
            write_png(Path(f"p/{name}/{one}.png"), picture(32, 32, 10 * number + one))
    lines("qv.jsonl", [{"id": f"s{one}", "image": f"{one}.png", "conversations": TURNS} for one in range(3)])
    return tmp_path


def lines(file: str, rows: list[Any]) -> None:
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*args: str, code: int = 0) -> None:
    assert app.run(list(args)) == code


def mend_the_file() -> None:
    lines("bad.jsonl", [{"image": "0.png", "conversations": TURNS}] * 2)


BAD = ["convert", "bad.jsonl", "x.jsonl", "--format", "openai", "--media-root", "p/A"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["audit", "nothere", "--out", "t.html"], ["audit", "qv.jsonl", "--out", "t.html", "--media-root", "p/A"]),
        (
            ["audit", "qv.jsonl", "--out", "t.html", "--media-root", "nope"],
            ["audit", "qv.jsonl", "--out", "t.html", "--media-root", "p/A"],
        ),
        (
            ["audit", "qv.jsonl", "--out", "t.html", "--from-format", "qwenv"],
            ["audit", "qv.jsonl", "--out", "t.html", "--media-root", "p/A"],
        ),
        (
            ["validate", "qv.jsonl", "--out", "t", "--media-root", "nope"],
            ["validate", "qv.jsonl", "--out", "t", "--media-root", "p/A"],
        ),
        (
            ["validate", "qv.jsonl", "--out", "t", "--quarantine", "q", "--from-format", "qwenv"],
            ["validate", "qv.jsonl", "--out", "t", "--quarantine", "q", "--media-root", "p/A"],
        ),
        (
            ["convert", "f.csv", "x.jsonl", "--format", "flat", "--map", "image=imag_path,user=q,assistant=a"],
            ["convert", "f.csv", "x.jsonl", "--format", "flat", "--map", "image=image_path,user=q,assistant=a"],
        ),
        (["convert", "coco.json", "x.parquet"], ["convert", "coco.json", "x.parquet", "--map", "boxes=clip"]),
        (["mix", "bad.jsonl", "--out", "mx", "--media-root", "p/A"], ["mix", "qv.jsonl", "--out", "mx", *BAD[-2:]]),
        (["dedup", "qv.jsonl", "--out", "dd"], ["dedup", "qv.jsonl", "--out", "dd", "--media-root", "p/A"]),
        (BAD, ["convert", "qv.jsonl", *BAD[2:]]),
    ],
    ids=lambda args: " ".join(args[:2]),
)
def test_a_failed_command_does_not_block_the_corrected_one(
    here: Path, wrong: list[str], right: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("f.csv").write_text("image_path,q,a\np/A/0.png,What?,That.\n", encoding="utf-8")
    lines("bad.jsonl", ["{"])
    boxes = [{"id": x, "image_id": 1, "category_id": 1, "bbox": [x, 2, 4, 5]} for x in (1, 40)]
    image = {"id": 1, "file_name": "p/A/0.png", "width": 32, "height": 32}
    coco = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    Path("coco.json").write_text(json.dumps(coco), encoding="utf-8")
    run(*wrong, code=2)
    assert "another command" not in capsys.readouterr().err
    run(*right)


def test_a_file_that_is_mended_before_anything_was_written_can_be_converted(here: Path) -> None:
    Path("bad.jsonl").write_text("{\n", encoding="utf-8")
    run(*BAD, code=2)
    mend_the_file()
    run(*BAD)
    assert len(Dataset("x.jsonl")) == 2


def test_a_file_that_is_mended_before_anything_was_compared_can_be_compared(here: Path) -> None:
    args = ["dedup", "qv.jsonl", "--out", "dd", "--media-root", "p/A"]
    os.rename("p/A/2.png", "p/A/3.png")
    run(*args, code=2)
    Path("qv.jsonl").write_text(Path("qv.jsonl").read_text("utf-8").replace("2.png", "3.png"), encoding="utf-8")
    run(*args)


def test_an_audit_that_was_stopped_gives_way_to_another(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("qvl_data.audit.same", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            audit(Path("qv.jsonl"), Path("t.html"), media_root=Path("p"))
    run("audit", "qv.jsonl", "--out", "t.html", "--media-root", "p/A")
    found = list(read_findings(Path(".t.html.job/validate/findings.jsonl")))
    assert {finding.reason for finding in found} == {"license_missing"}, "what was found under the other root is gone"


def test_the_output_is_named_not_its_journal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("validate", "qv.jsonl", "--out", "t", "--media-root", "p/A")
    run("validate", "qv.jsonl", "--out", "t", "--media-root", "p/B", code=2)
    assert capsys.readouterr().err.startswith("t: holds the output of another command")


@pytest.fixture
def model(processor: Any) -> Path:
    """Folder of the tiny model."""
    pytest.importorskip("tokenizers", reason="counts without transformers")
    return Path(processor.tokenizer.name_or_path)


def test_what_pack_advises_can_be_done(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines("some.jsonl", [*[{"image": "0.png", "conversations": TURNS}] * 2, {"image": 1, "conversations": TURNS}])
    args = ["pack", "some.jsonl", "--media-root", "p/A", "--out", "z.parquet"]
    run(*args, "--model", "tinyx", code=2)
    run(*args, "--model", str(model), code=2)
    assert "--max-bad allows 0; mend them or raise it" in capsys.readouterr().err
    run(*args, "--model", str(model), "--max-bad", "1", "--capacity", "8", code=2)
    assert "raise the capacity, or choose drop or cut" in capsys.readouterr().err
    run(*args, "--model", str(model), "--max-bad", "1", "--capacity", "256")
    assert Plan.read(Path("z.parquet")).left_out.tolist() == [2]
    run(*args, "--model", str(model), "--max-bad", "2", "--capacity", "256")
    assert "nothing was done" in capsys.readouterr().out
    run(*args, "--model", str(model), "--capacity", "256", code=2)
    assert "--max-bad allows 0" in capsys.readouterr().err
    run(*args, "--model", str(model), "--max-bad", "1", "--capacity", "512", code=2)
    assert "z.parquet: holds the output of another command" in capsys.readouterr().err


def test_a_file_that_is_mended_before_a_plan_was_written_can_be_packed(
    here: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvl_data.pack.CHUNK", 1)
    rows: list[Any] = [{"image": "0.png", "conversations": TURNS}] * 2
    lines("some.jsonl", [*rows, {"image": 1, "conversations": TURNS}])
    args = ["pack", "some.jsonl", "--media-root", "p/A", "--out", "z.parquet", "--model", str(model)]
    run(*args, code=2)
    lines("some.jsonl", [*rows, *rows])
    run(*args)
    assert len(Plan.read(Path("z.parquet")).samples) == 4


def test_the_lengths_that_are_known_are_not_measured_again(
    here: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = Mixture("qv.jsonl", media_root="p/A")
    with pytest.raises(BadInput, match="do not fit into a bin of 8 tokens"):
        pack_source(mixture, model, Path("z.parquet"), 8)
    monkeypatch.setattr("qvl_data.pack.measure", lambda *_: pytest.fail("measured again"))
    assert pack_source(mixture, model, Path("z.parquet"), 256)["samples"] == 3


# --- what decides about the samples


@pytest.mark.parametrize(
    "other",
    [
        ["--media-root", "p/B"],
        ["--media-root", "p/A", "--allow-root", "p"],
        ["--media-root", "p/A", "--container", "tar"],
    ],
    ids=lambda args: " ".join(args),
)
@pytest.mark.parametrize("verb", ["mix", "convert"])
def test_another_way_of_reading_is_another_command(
    here: Path, verb: str, other: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["mix", "qv.jsonl", "--out", "out"] if verb == "mix" else ["convert", "qv.jsonl", "out"]
    run(*args, "--media-root", "p/A")
    run(*args, *other, code=2)
    assert "out: holds the output of another command" in capsys.readouterr().err
    assert {file.suffix for file in Path("out").iterdir()} <= {".parquet", ".jsonl", ".md"}


@pytest.mark.parametrize(
    "args",
    [
        ["mix", "qv", "--out", "out"],
        ["convert", "qv", "out"],
        ["validate", "qv", "--out", "out"],
        ["audit", "qv", "--out", "out.html"],
        ["dedup", "qv", "--out", "out"],
    ],
    ids=lambda args: args[0],
)
def test_an_entry_that_was_edited_makes_another_command(
    here: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def register(fields: str) -> None:
        Path("datasets.yaml").write_text("datasets:\n  qv: {path: qv.jsonl" + fields + "}\n", encoding="utf-8")

    register(", media_root: p/A")
    run(*args)
    register(", media_root: p/A, augment: {shift: 1}")  # changes nothing that is read here
    run(*args)
    for fields in (", media_root: p/B", ", media_root: p/A, license: MIT", ", media_root: p/A, format: llava"):
        register(fields)
        run(*args, code=2)
        assert f"{args[-1]}: holds the output of another command" in capsys.readouterr().err


def test_another_media_root_makes_another_plan(here: Path, model: Path) -> None:
    pack_source(Mixture("qv.jsonl", media_root="p/A"), model, Path("z.parquet"), 256)
    with pytest.raises(BadInput, match=r"z\.parquet: holds the output of another command"):
        pack_source(Mixture("qv.jsonl", media_root="p/B"), model, Path("z.parquet"), 256)


def test_another_media_root_makes_another_clean_set(here: Path) -> None:
    marks = Marks(Path("m.jsonl"))
    write_clean(Dataset("qv.jsonl", media_root="p/A"), marks, Path("clean.parquet"))
    with pytest.raises(BadInput, match=r"clean\.parquet: holds the output of another command"):
        write_clean(Dataset("qv.jsonl", media_root="p/B"), marks, Path("clean.parquet"))


def test_no_archive_comes_between_shards_of_another_kind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["mix", "qv.jsonl", "--media-root", "p/A", "--out", "mx", "--shard", "1"]
    run(*args)
    Path("mx/train-00001-of-00003.parquet").unlink()
    run(*args, "--container", "tar", code=2)
    assert "another command" in capsys.readouterr().err
    run(*args, "--container", "tar", "--fresh")
    assert {file.suffix for file in Path("mx").glob("train*")} == {".tar"}
