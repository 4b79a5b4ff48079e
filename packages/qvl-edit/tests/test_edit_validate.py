"""What can be learned from is told from what cannot, as extraction does, and how far pairs are shifted is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from edit_rows import row, task
from editing_verbs import Done, qvl_edit
from PIL import Image, ImageChops, ImageOps

from qvl_core.recipe.load import load
from qvl_edit.extract import extract
from qvl_edit.recipe import RECIPE

DOCUMENT = [
    {
        "source_image": "001.png",
        "target_image": "001_edit.png",
        "instruction": "Change the sky to sunset.",
        "instruction_cn": "把天空改成日落。",
        "inverse_instruction": "A photo of a landscape with a blue sky.",
        "inverse_instruction_cn": "一张蓝天下的风景照。",
    },
    {
        "source_image": ["ref1.png", "ref2.png"],
        "target_image": "out.png",
        "instruction": "Merge the two characters into one scene.",
        "instruction_cn": "把两个角色合成到一个场景里。",
    },
    {
        "source_image": None,
        "target_image": "generated.png",
        "instruction": "A cat sitting on a windowsill.",
        "instruction_cn": "一只猫坐在窗台上。",
    },
]


@pytest.fixture
def pictures(tmp_path: Path, photo: Image.Image) -> Path:
    """A folder of the document's pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    small = photo.resize((96, 96))
    for name in ("001.png", "ref1.png", "out.png", "generated.png"):
        small.save(folder / name)
    ImageOps.invert(small).save(folder / "001_edit.png")
    small.rotate(90).save(folder / "ref2.png")
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return file


def validate(data: Path, out: Path, *more: object) -> tuple[Done, dict[str, Any]]:
    done = qvl_edit("validate", "tiny", f"data={{train: {data}}}", "pictures.size=96", *more, "--out", out)
    file = out / "validation.json"
    return done, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def test_the_rows_of_the_document(pictures: Path, tmp_path: Path) -> None:
    rows = [dict(one) for one in DOCUMENT]
    for one in rows:  # by absolute path, as they stand in the document
        named = one["source_image"]
        one["source_image"] = [str(pictures / name) for name in named] if isinstance(named, list) else (
            named and str(pictures / named))  # fmt: skip
        one["target_image"] = str(pictures / one["target_image"])
    (tmp_path / "elsewhere").mkdir()
    data = write(tmp_path / "elsewhere", rows)
    refused, _ = validate(data, tmp_path / "refused")
    assert refused.code == 2
    assert "allow its folder with --allow-root" in refused.err
    done, found = validate(data, tmp_path / "out", "--allow-root", pictures)
    assert done.code == 0, done.err
    assert (found["samples"], found["usable"], found["bad"]) == (3, 3, 0)
    assert found["tasks"] == {"rows": {"0": 1, "1": 1, "2": 1}}
    assert found["texts"] == {"instruction · en": 3, "instruction · zh": 3, "inverse · en": 1, "inverse · zh": 1}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "把两个角色合成到一个场景里。" in page
    assert "Nothing: every sample was read" in page


def test_columns_are_renamed_and_edit_image_is_a_target(pictures: Path, tmp_path: Path) -> None:
    first, *_ = DOCUMENT
    other = {"before": first["source_image"], "after": first["target_image"], "say": first["instruction"]}
    done, found = validate(
        write(pictures, [other]), tmp_path / "a", "--map", "source_image=before,target_image=after,instruction=say"
    )
    assert (done.code, found["usable"], found["texts"]) == (0, 1, {"instruction · en": 1})
    edited = {key.replace("target_image", "edit_image"): value for key, value in first.items()}
    done, found = validate(write(pictures, [edited]), tmp_path / "b")
    assert (done.code, found["usable"]) == (0, 1)


def test_what_is_left_out_here_is_left_out_there(pictures: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 4000)).save(pictures / "slim.png")
    (pictures / "cut.png").write_bytes((pictures / "001.png").read_bytes()[:2000])
    (pictures / "text.png").write_text("no picture", encoding="utf-8")
    first, second, third = DOCUMENT
    bad = [
        {**first, "source_image": "gone.png"},
        {**first, "source_image": "cut.png"},
        {**first, "target_image": "text.png"},
        {**first, "source_image": "slim.png"},
        {**second, "instruction": "", "instruction_cn": None},
        {key: value for key, value in third.items() if "instruction" not in key},
        {**second, "source_image": ["001.png"] * 4},
        {**first, "target_image": None},
        {**first, "source_image": "/etc/001.png"},
    ]
    data = write(pictures, [*DOCUMENT, *bad])
    done, found = validate(data, tmp_path / "out")
    assert done.code == 2
    assert "9 rows cannot be used, and data.max_bad allows 0; mend or remove them" in done.err
    assert (found["usable"], found["bad"]) == (3, 9)
    reasons = {code: reason["count"] for code, reason in found["reasons"].items()}
    assert reasons == {
        "media_missing": 1, "image_truncated": 1, "image_format": 1, "edit_shape": 1, "no_instruction": 2,
        "media_count": 1, "edit": 1, "media_path": 1,
    }  # fmt: skip
    lines = (tmp_path / "out" / "findings.jsonl").read_text(encoding="utf-8").splitlines()
    here = {json.loads(line)["place"].rpartition(":")[2] for line in lines}
    changes = [f"data={{train: {data}, max_bad: 9, workers: 0}}", "pictures.size=96"]
    extract(load(RECIPE, "tiny", changes, "qvl_edit"), tmp_path / "embeddings")
    left = (tmp_path / "embeddings" / "left_out.jsonl").read_text(encoding="utf-8").splitlines()
    assert here == {json.loads(line)["id"].partition("rows.jsonl:")[2].split(" ")[0] for line in left}
    done, _ = validate(data, tmp_path / "borne", "data.max_bad=9")
    assert done.code == 0


def test_a_shift_is_measured_and_shown(photo: Image.Image, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    small = photo.resize((192, 192))
    small.save(folder / "source.png")
    rows = []
    for down, right in ((0, 0), (0, 0), (0, 8), (-3, 4)):
        name = f"target{down}{right}.png"
        ImageChops.offset(ImageOps.invert(small), right, down).save(folder / name)
        rows.append({"source_image": "source.png", "target_image": name, "instruction": "Invert the colours."})
    done, found = validate(write(folder, rows), tmp_path / "out", "pictures.size=192")
    assert done.code == 0, done.err
    assert found["alignment"]["worst"][0]["place"].endswith("rows.jsonl:3")
    assert [(one["down"], one["right"]) for one in found["alignment"]["worst"]] == [(0, 8), (-3, 4)]
    assert (found["alignment"]["agree"], found["alignment"]["moved"]) == (4, 2)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("2 of 4 pairs (50.0%) are moved", "8 px right", "3 px up, 4 px right", "moved back"):
        assert words in page, words


def test_pairs_that_are_the_same_are_a_warning_unless_they_are_meant(pictures: Path, tmp_path: Path) -> None:
    Image.open(pictures / "001.png").save(pictures / "again.bmp")  # other bytes, the same pixels
    data = write(pictures, [{**DOCUMENT[0], "target_image": "again.bmp"}])
    done, found = validate(data, tmp_path / "out")
    assert (done.code, found["usable"], found["warned"]) == (0, 1, 1)
    assert "edit_unchanged" in done.out
    done, found = validate(data, tmp_path / "meant", "--allow-identity")
    assert (done.code, found["warned"], found["alignment"]["moved"], found["alignment"]["agree"]) == (0, 0, 0, 1)


def test_tasks_and_pairs_that_no_row_answers_to(tmp_path: Path) -> None:
    task(tmp_path / "meta" / "a", (0, 1, 1))
    task(tmp_path / "meta" / "b", (1, 2))
    done, found = validate(tmp_path / "meta", tmp_path / "out", "mixture.tasks=a=0.5,b=1.5", "data.max_bad=9")
    assert done.code == 0, done.err
    assert found["tasks"] == {"a": {"0": 1, "1": 2}, "b": {"1": 1, "2": 1}}
    assert found["shares"] == pytest.approx({"a": 0.25, "b": 0.75})
    done, found = validate(tmp_path / "meta", tmp_path / "none", "mixture.tasks=a=1", "mixture.sources=1=1,2=1")
    assert done.code == 2
    assert "mixture.sources: 2 has weight 1, but no task with a weight has a sample of 2 sources" in done.err
    assert found["impossible"] in done.err
    assert "no task with a weight has a sample of 2 sources" in (tmp_path / "none" / "report.html").read_text("utf-8")


def test_rows_whose_number_of_sources_is_not_trained_are_counted(pictures: Path, tmp_path: Path) -> None:
    done, found = validate(write(pictures, DOCUMENT), tmp_path / "out", "mixture.sources=1=1")
    assert (done.code, found["usable"], found["untrained"]) == (0, 3, 2)


def test_data_without_a_row_that_can_be_used_is_an_error(pictures: Path, tmp_path: Path) -> None:
    data = write(pictures, [{**DOCUMENT[0], "source_image": "gone.png"}])
    done, found = validate(data, tmp_path / "out", "data.max_bad=9")
    assert done.code == 2
    assert "data.train: no row can be used: " in done.err
    assert "gone.png: cannot be opened" in done.err
    assert found["usable"] == 0


def test_lists_that_share_rows_are_told(tmp_path: Path) -> None:
    file = task(tmp_path / "a", (1, 1))
    done, found = validate(file, tmp_path / "out", f"data.validation={file}")
    assert done.code == 0
    assert found["shared"][0].startswith(f"{file}: 2 samples are in train and in validation")


def test_small_targets_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one = row(tmp_path / "a", "small", [(40, 40)], (40, 40), instruction="larger")
    _, found = validate(write(tmp_path / "a", [one]), tmp_path / "out")
    assert found["enlarged"] == 1


def test_places_are_told_whole_wherever_data_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By relative and absolute paths, and in the folder where we are."""
    first, second = task(tmp_path / "a", (1, 1)), task(tmp_path / "b", (1, 1))
    (tmp_path / "a" / "001-0.png").unlink()
    monkeypatch.chdir(first.parent)
    for number, more in enumerate(((), (f"data.validation={second}",))):
        done, _ = validate(Path("rows.jsonl"), tmp_path / f"out-{number}", "data.max_bad=1", *more)
        assert done.code == 0, done.err
        page = (tmp_path / f"out-{number}" / "report.html").read_text(encoding="utf-8")
        assert "rows.jsonl:2" in page


@pytest.mark.slow
def test_several_processes_find_the_same(tmp_path: Path) -> None:
    task(tmp_path / "a", (0, 1, 2) * 12)
    _, one = validate(tmp_path / "a" / "rows.jsonl", tmp_path / "one")
    _, two = validate(tmp_path / "a" / "rows.jsonl", tmp_path / "two", "--workers", 2)
    assert one == two
