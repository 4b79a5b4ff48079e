"""Previews of a run: at fixed prompts and seeds, what `edit` draws; the page shows source, target and output."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from edit_rows import task
from PIL import Image

from qvl_core.recipe.load import load
from qvl_edit import EditPipeline, preview, train
from qvl_edit.extract import extract
from qvl_edit.recipe import RECIPE, EditRecipe


def recipe(folder: Path, *changes: str) -> EditRecipe:
    given = [f"data={{train: {folder / 'a' / 'rows.jsonl'}, validation: {folder / 'b' / 'rows.jsonl'}}}"]
    given += [f"stored.embeddings={folder / 'embeddings'}", "train.steps=4", "batch.size=2", "evaluate.every=2"]
    given += ["sampling={guidance: 3, steps: 2, negative: bad}"]
    return load(RECIPE, "tiny", [*given, *changes], "qvl_edit")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("previews")
    task(folder / "a", (1, 1, 1))
    task(folder / "b", (1, 2, 0))
    extract(recipe(folder), folder / "embeddings")
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    train(recipe(data), data / "run")
    return data / "run"


def names(run: Path, pattern: str) -> list[str]:
    return sorted(file.name for file in (run / "samples").glob(pattern))


def test_each_evaluation_draws_the_same_prompts(run: Path) -> None:
    assert names(run, "step-*.png") == [f"step-{step:06d}-{n:02d}.png" for step in (2, 4) for n in range(3)]
    texts = {(run / "samples" / f"step-000004-{n:02d}.txt").read_text("utf-8") for n in range(3)}
    assert texts == {"b 0", "b 1", "b 2"}
    assert len(names(run, "prompt-*.png")) == 3
    assert names(run, "target-*.png") == [f"target-{n:02d}.png" for n in range(3)]


def test_a_preview_is_what_edit_draws(run: Path) -> None:
    """Embeddings that were stored before, and the model in training, give what the saved one gives by itself."""
    pipeline = EditPipeline.from_pretrained(run)
    for number in range(3):
        stem = f"step-000004-{number:02d}"
        text = (run / "samples" / f"{stem}.txt").read_text("utf-8")
        row = int(text.split()[1])
        shown = [
            Image.open(run.parent / "b" / f"{row:03d}-{place}.png").convert("RGB") for place in range((1, 2, 0)[row])
        ]
        preview, target = (Image.open(run / "samples" / f"{name}.png") for name in (stem, f"target-{number:02d}"))
        assert preview.size == target.size
        width, height = preview.size
        (drawn,) = pipeline(text, shown or None, seed=0, height=height, width=width).images
        assert np.abs(np.asarray(drawn, int) - np.asarray(preview, int)).max() <= 1


def test_the_page_shows_source_target_and_output(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    for word in ("What it draws", "shown", "wanted", "step 2", "step 4", "b 1"):
        assert word in page


def test_that_nothing_can_be_drawn_is_said(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The negative text is another one than was stored."""
    train(recipe(data, "sampling.negative=worse", "train.steps=1"), tmp_path / "run")
    assert names(tmp_path / "run", "step-*.png") == []
    assert "no previews: " in caplog.text
    assert '"worse" with its' in caplog.text


def test_too_little_memory_for_pictures_ends_no_run(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(preview, "draw", full)
    values = train(recipe(data, "train.steps=1"), tmp_path / "run")
    assert values["complete"]
    assert "step 1: no pictures: the device's memory is full; sampling.preview: 0 draws none" in caplog.text
    caplog.clear()
    train(recipe(data, "train.steps=1", "sampling.preview=0"), tmp_path / "none")
    assert (names(tmp_path / "none", "*"), caplog.text) == ([], "")


def test_a_picture_that_cannot_be_read_is_left_out_and_said(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Path(shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("run")))
    file = own / "b" / "001-2.png"  # the target
    file.write_bytes(file.read_bytes()[:200])
    train(recipe(own, "train.steps=1"), tmp_path / "run")
    assert names(tmp_path / "run", "step-*.png") == [f"step-000001-{n:02d}.png" for n in range(2)]
    assert "previews leave 1 samples out, such as: " in caplog.text
    assert "001-2.png" in caplog.text


def test_previews_of_the_training_list_between_evaluations(data: Path, tmp_path: Path) -> None:
    """Without a validation list; of its samples the empty text is stored, not the negative one."""
    changes = (f"data={{train: {data / 'a' / 'rows.jsonl'}}}", "train.steps=2", "sampling.preview=1")
    train(recipe(data, *changes), tmp_path / "run")
    assert names(tmp_path / "run", "step-*.png") == [f"step-{s:06d}-{n:02d}.png" for s in (1, 2) for n in range(3)]
