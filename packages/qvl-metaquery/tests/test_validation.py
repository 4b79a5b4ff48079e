"""What is measured and drawn while a model learns: with the same noise each time, and changing nothing of it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qvl_core.errors import BadInput
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training.parts import Parts
from qvl_core.training.world import World
from qvl_data.convert import write_samples
from qvl_data.example.drawings import drawings
from qvl_metaquery import validation
from qvl_metaquery.batch import Corruption
from qvl_metaquery.build import build
from qvl_metaquery.recipe import RECIPE
from qvl_metaquery.train import train
from qvl_metaquery.validation import fixed

SHAPE = (4, 4, 4)
ALONE = World(0, 1, torch.device("cpu"), "single")


@pytest.mark.parametrize("count", [8, 21, 100])
def test_the_first_noise_levels_of_a_list_lie_evenly(count: int) -> None:
    levels = sorted(fixed(Corruption(SHAPE), place)[1] for place in range(count))
    gaps = [b - a for a, b in pairwise([0.0, *levels, 1.0])]
    assert max(gaps) < 3 / count
    assert np.isclose(np.mean(levels), 0.5, atol=1 / count)


def test_noise_is_fixed_by_the_place_in_the_list() -> None:
    first, again, other = (fixed(Corruption(SHAPE), place)[0] for place in (3, 3, 4))
    assert (first == again).all()
    assert np.abs(first - other).max() > 0.5
    shifted = [fixed(Corruption(SHAPE, shift=3.0), place)[1] for place in range(9)]
    plain = [fixed(Corruption(SHAPE), place)[1] for place in range(9)]
    assert np.allclose(shifted, [3 * s / (1 + 2 * s) for s in plain])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few digits, each by name and as a picture to be inverted."""
    folder = tmp_path_factory.mktemp("drawings")
    for split, count in (("train", 24), ("validation", 10), ("test", 4)):
        write_samples(list(drawings(split))[:count], folder / f"{split}.parquet")  # type: ignore[arg-type]
    return folder


def recipe(data: Path, *changes: str) -> Any:
    lists = f"data={{train: {data}, validation: {data}, test: {data}}}"
    return load(RECIPE, "tiny", [lists, "train.steps=4", "batch.size=6", "sampling.steps=3", *changes], "qvl_metaquery")


def parts_of(made: Any, out: Path) -> Parts:
    run = RunFolder(out)
    out.mkdir()
    return build(made, run, ALONE)


@pytest.fixture(scope="module")
def watched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is measured after each second step, and drawn from after each."""
    out = tmp_path_factory.mktemp("watched") / "run"
    train(recipe(data, "evaluate.every=2", "sampling.preview=1"), out)
    return out


def test_a_run_that_is_watched_learns_what_another_does(watched: Path, data: Path, tmp_path: Path) -> None:
    train(recipe(data), tmp_path / "run")
    for name in ("connector.safetensors", "transformer/diffusion_pytorch_model.safetensors"):
        files = [folder / "final" / name for folder in (watched, tmp_path / "run")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_loss_is_measured_on_the_way_and_at_the_end(watched: Path) -> None:
    run = RunFolder(watched)
    found = [record for record in run.read_metrics() if record.get("event") == "evaluation"]
    assert [record["step"] for record in found] == [2, 4]
    assert found[0]["validation_loss"] > found[1]["validation_loss"]
    result = run.read_result()
    assert result is not None
    assert result["validation_loss"] == found[1]["validation_loss"]
    assert 0.5 < result["test_loss"] < 5


def test_the_loss_is_the_same_whatever_is_measured_together(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever the run's seed is, if its weights are the same."""
    one, other = (parts_of(recipe(data, f"train.seed={seed}"), tmp_path / str(seed)) for seed in (0, 1))
    other.model.load_state_dict(one.model.state_dict())
    found = []
    for parts, held in ((one, 64), (one, 1), (other, 7)):
        monkeypatch.setattr(validation, "HELD", held)
        with torch.no_grad():
            found.append(parts.evaluate(parts.model.eval(), ALONE, True))  # type: ignore[misc]
    for figures in found:
        assert figures.keys() == {"validation_loss", "test_loss"}
        assert figures == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("change", ["metrics=[exact_match]", "max_new_tokens=8", "group_by=language"])
def test_what_belongs_to_answers_is_refused(change: str, data: Path) -> None:
    with pytest.raises(BadInput, match="belongs to answers; the loss alone is measured"):
        recipe(data, f"evaluate.{change}")


def test_prompts_are_drawn_from_the_same_noise_and_shown_one_by_one(watched: Path) -> None:
    steps = {file.name.split("-")[1] for file in (watched / "samples").glob("step-*.png")}
    assert steps == {"000001", "000002", "000003", "000004"}
    texts = [file.read_text(encoding="utf-8") for file in sorted((watched / "samples").glob("step-000001-*.txt"))]
    assert "the same digit, inverted" in texts
    names = [text for text in texts if text.startswith("a handwritten")]
    assert len(set(names)) == len(names) > 1
    page = (watched / "report.html").read_text(encoding="utf-8")
    assert "What it draws" in page
    assert page.count(">step 4<") == len(texts)
    assert page.count(">shown<") == texts.count("the same digit, inverted")
