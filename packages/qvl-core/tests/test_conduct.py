"""A whole run as a command makes it: what becomes of a mistake, of a kill, and of a run that is finished."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from harness import toy_run
from toy import network, toy_parts, toy_recipe

from qvl_core.cli import plugin
from qvl_core.errors import BadInput, Preempted
from qvl_core.qwen3vl.load import commit_of, find_folder
from qvl_core.recipe.blocks import Recipe
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training.conduct import conduct
from qvl_core.training.parts import Callbacks, Parts
from qvl_core.training.world import World


def build(recipe: Recipe, run: RunFolder, world: World) -> Parts:
    identity = {"batch": {"size": recipe.batch.size}}
    return toy_parts(network(), steps=recipe.train.steps, identity=identity)


def page(path: Path) -> Path:
    file = RunFolder(path).report_file
    file.write_text("page", encoding="utf-8")
    return file


def train(out: Path, build: Any = build, allow_change: bool = False, **blocks: Any) -> dict[str, Any]:
    return conduct("qvl-core", toy_recipe(**blocks), out, build, report=page, allow_change=allow_change)


def test_a_mistake_while_building_leaves_a_folder_that_is_taken_up(tmp_path: Path) -> None:
    def mistaken(recipe: Recipe, run: RunFolder, world: World) -> Parts:
        (run.path / "base").mkdir()
        raise BadInput("data.train: there is no such file.")

    out, blocks = tmp_path / "run", {"train": {"steps": 2}}
    with pytest.raises(BadInput, match="no such file"):
        train(out, mistaken)
    assert load(Recipe, RunFolder(out).recipe_file) == toy_recipe()
    assert train(out, **blocks)["steps"] == 2
    assert load(Recipe, RunFolder(out).recipe_file) == toy_recipe(**blocks)


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    result = train(out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    indifferent: dict[str, Any] = {
        "log": {"every": 1},
        "checkpoint": {"every": 1},
        "data": {"train": "none", "workers": 1},
        "batch": {"size": 8, "micro": 2},
    }
    assert train(out, **indifferent) == result
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    RunFolder(out).report_file.unlink()  # as after a kill just before it was written
    train(out)
    assert RunFolder(out).report_file.is_file()


class Own(Recipe):
    """A method's recipe, that names what is indifferent in it."""

    indifferent: ClassVar[dict[str, Any]] = Recipe.indifferent | {"schedule": {"warmup"}}


def test_a_finished_run_may_differ_in_what_a_method_says_is_indifferent(tmp_path: Path) -> None:
    def again(**schedule: Any) -> dict[str, Any]:
        recipe = Own.model_validate(toy_recipe(schedule=schedule).model_dump(mode="json"))
        return conduct("qvl-core", recipe, tmp_path / "run", build, report=page)

    finished = again(warmup=2)
    assert again(warmup=3) == finished
    with pytest.raises(BadInput, match=r"finished.*\(schedule\.name was cosine, is linear\)"):
        again(warmup=3, name="linear")


def test_a_finished_run_of_another_recipe_is_refused_or_gone_on_with(tmp_path: Path) -> None:
    out, longer = tmp_path / "run", {"train": {"steps": 10, "seed": 3}, "optim": {"lr": 1e-3}}
    train(out)
    with pytest.raises(BadInput, match=r"finished.*\(optim\.lr was 0\.0002, is 0\.001; train\.steps was 8, is 10\)"):
        train(out, **longer)
    assert train(out, **longer, allow_change=True)["steps"] == 10
    assert [record["step"] for record in RunFolder(out).read_metrics() if record.get("event") == "resume"] == [8]


PLUGIN = """
from toy import ToyBatches


class MyBatches(ToyBatches):
    pass
"""


def test_workers_run_the_plugins_before_they_build(tmp_path: Path) -> None:
    """Their batches are of a class that only the plugin knows."""
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN, encoding="utf-8")
    plugin.execute(str(file))
    try:
        batches = sys.modules["qvl_plugin_mine"].MyBatches(3)
        recipe = toy_recipe(data={"train": "none", "workers": 1}, train={"steps": 2, "seed": 3})
        outcome = toy_run(tmp_path / "run", toy_parts(network(), batches, steps=2), recipe)
    finally:
        del sys.modules["qvl_plugin_mine"]
    assert outcome.steps == 2


def test_a_run_that_goes_on_stands_on_the_commit_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache: a branch is a file that holds a commit, a commit is a folder."""
    from huggingface_hub import constants

    repository, first, second = tmp_path / "models--qvl--base", "0" * 40, "1" * 40
    for commit in (first, second):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}", encoding="utf-8")
    branch = repository / "refs" / "main"
    branch.parent.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    opened: list[str] = []

    def based(stop: int, revision: str | None) -> Callable[[Recipe, RunFolder, World], Parts]:
        def parts(recipe: Recipe, run: RunFolder, world: World) -> Parts:
            opened.append(find_folder("qvl/base", revision).name)
            assert commit_of("qvl/base", revision) == opened[-1]
            ask = Callbacks(on_step=lambda step: signal.raise_signal(signal.SIGTERM) if step == stop else None)
            return toy_parts(network(), callbacks=[ask])

        return parts

    for revision in (None, "main"):
        out = tmp_path / f"run-{revision}"
        branch.write_text(first, encoding="utf-8")
        with pytest.raises(Preempted):
            train(out, based(2, revision))
        branch.write_text(second, encoding="utf-8")
        with pytest.raises(Preempted):
            train(out, based(4, revision))
        branched = conduct(
            "qvl-core",
            toy_recipe(),
            tmp_path / f"branch-{revision}",
            based(0, revision),
            report=page,
            resume=out / "checkpoints/step-000004",
        )
        assert branched["complete"]
        train(tmp_path / f"new-{revision}", based(0, revision))
        assert opened == [first, first, first, second]
        opened.clear()
