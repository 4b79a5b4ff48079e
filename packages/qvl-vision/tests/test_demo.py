"""The demo: its encoder is what its seed says, a small one has all its parts, and five seeds reach the bars."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from qvl_core.errors import BadInput
from qvl_core.run import RunFolder
from qvl_data.dataset import Dataset
from qvl_data.example.digits import digit_png, indices
from qvl_vision import load, verify
from qvl_vision.demo import Size, demo, write_data
from qvl_vision.demo_encoder import features, pretrain, probe
from qvl_vision.demo_report import AT_MOST, BELOW
from qvl_vision.tiny import tiny_dinov2

SEEDS = range(5)
SMALL = Size(base=3, encoder=1, one=3, align=2, two=3, test=20)
FIGURES = (
    "base_accuracy",
    "probe_accuracy",
    "untrained_merger_accuracy",
    "one_stage_accuracy",
    "two_stage_accuracy",
    "low_rate_accuracy",
    "shuffled_accuracy",
)


def test_the_encoder_is_a_function_of_its_seed(tmp_path):
    numbers = indices("train")[:128]
    state = torch.get_rng_state()
    written = [pretrain(tmp_path / name, numbers, seed, epochs=1) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in written)
    assert a == b != c


def test_the_probe_learns_from_what_it_is_given_and_nothing_else():
    """Even a random encoder's tokens tell most digits apart; on a picture it was fitted on the probe is right."""
    model = tiny_dinov2(0, 16)
    known, new = indices("train")[:200], indices("test")[:100]
    assert features(model, new).shape == (100, 16 * 48)
    assert probe(model, known, known) == 1.0
    assert 0.5 < probe(model, known, new) < 1.0
    assert probe(model, known, new) == probe(model, known, new)


def test_no_test_picture_is_trained_on(tmp_path):
    write_data(tmp_path, 0)
    trained = {sample.media[0].bytes for sample in Dataset(tmp_path, "train")}
    assert len(trained) > 1400
    assert not trained & {digit_png(number) for number in indices("test", 0)}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A demo that has learned nothing, with everything that one leaves behind."""
    out = tmp_path_factory.mktemp("small") / "demo"
    demo(out, 0, SMALL)
    return out


def values(out: Path) -> dict[str, float]:
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


def test_what_a_demo_leaves(small):
    result = values(small)
    assert (result["schema"], result["package"], result["complete"]) == ("qvl.result/1", "qvl-vision", True)
    assert {name for name in result if name.endswith("_accuracy")} == set(FIGURES)
    page = (small / "report.html").read_text(encoding="utf-8")
    assert "What the encoder sees" in page
    assert "qvl-vision swap Qwen/Qwen3-VL-4B-Instruct --encoder rad_dino" in page


def test_the_trained_models_are_what_was_trained(small):
    """The encoder stays as it is; stage one leaves the language model alone; all of them verify."""
    start = dict(load(small / "swapped")[0].named_parameters())
    changed = {"two_stage_merger": {"merger"}, "two_stage": {"merger", "llm"}, "one_stage": {"merger", "llm"}}
    for name, groups in changed.items():
        folder = small / "runs" / name / "final"
        found = {
            "merger" if "visual.merger" in key else "encoder" if "visual" in key else "llm"
            for key, value in load(folder)[0].named_parameters()
            if not torch.equal(value, start[key])
        }
        assert found == groups
        assert all(check.ok for check in verify(folder))
        assert json.loads((folder / "config.json").read_text())["vision_config"]["merger_trained"] is True


def test_a_finished_demo_is_left_alone_and_an_unfinished_one_continued(small, tmp_path):
    out = tmp_path / "demo"
    shutil.copytree(small, out)
    times = {path: os.stat(path).st_mtime_ns for path in out.rglob("*")}
    assert demo(out, 0, SMALL) == values(small)
    assert {path: os.stat(path).st_mtime_ns for path in out.rglob("*")} == times
    with pytest.raises(BadInput, match="holds the demo of seed 0; choose another folder"):
        demo(out, 1, SMALL)


@pytest.mark.slow
def test_a_demo_that_was_interrupted_ends_with_the_same_figures(small, tmp_path):
    shutil.rmtree(small / "runs" / "two_stage")
    RunFolder(small).write_result({"seed": 0, "complete": False})
    before = {path: path.stat().st_mtime_ns for path in (small / "runs" / "one_stage").rglob("*")}
    continued = demo(small, 0, SMALL)
    assert {path: path.stat().st_mtime_ns for path in (small / "runs" / "one_stage").rglob("*")} == before
    anew = demo(tmp_path / "anew", 0, SMALL)
    assert {name: continued[name] for name in FIGURES} == {name: anew[name] for name in FIGURES}


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("demos")
    done = []
    for seed in SEEDS:
        begun = time.process_time()
        done.append(demo(folder / str(seed), seed) | {"seconds": time.process_time() - begun})
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_stage_accuracy", "two_stage_accuracy"])
def test_the_bars_hold_on_each_of_five_seeds(demos, name):
    behind = [round(result["probe_accuracy"] - result[name], 4) for result in demos]
    assert max(behind) <= BELOW, behind
    assert min(result["probe_accuracy"] for result in demos) >= 0.9


@pytest.mark.slow
def test_without_training_or_the_right_picture_it_is_at_chance(demos):
    for name in ("untrained_merger_accuracy", "shuffled_accuracy"):
        assert max(result[name] for result in demos) <= AT_MOST, name
    assert max(result["low_rate_accuracy"] for result in demos) <= 0.6


@pytest.mark.slow
def test_it_takes_at_most_three_minutes_of_a_core(demos):
    assert max(result["seconds"] for result in demos) <= 180
