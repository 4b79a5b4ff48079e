"""Runs on the tiny model: they end, go on to the bit, and leave what diffusers loads."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from edit_rows import task
from PIL import Image
from safetensors.torch import load_file

from qvl_core.errors import BadInput, QVLError
from qvl_core.recipe.load import dump, load
from qvl_core.run import RunFolder
from qvl_core.training.world import World, processes
from qvl_edit import train
from qvl_edit.build import build, checkpoint_of, open_transformer, transformer_of
from qvl_edit.extract import extract
from qvl_edit.recipe import RECIPE, EditRecipe
from qvl_edit.saving import LORA, save_transformer
from qvl_edit.settings import Settings
from qvl_edit.tiny import tiny
from qvl_edit.trained import find_trained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, and the embeddings of all of them."""
    folder = tmp_path_factory.mktemp("trained")
    task(folder / "meta" / "a", (0, 1, 1, 2, 1, 1))
    task(folder / "meta" / "b", (1, 2, 1))
    extract(make_recipe(folder), folder / "embeddings")
    return folder


def make_recipe(folder: Path, *changes: str) -> EditRecipe:
    given = [f"data={{train: {folder / 'meta'}, validation: {folder / 'meta' / 'b' / 'rows.jsonl'}}}"]
    given += [f"stored.embeddings={folder / 'embeddings'}", "train.steps=4", "batch.size=4", "checkpoint.every=2"]
    return load(RECIPE, "tiny", [*given, *changes], "qvl_edit")


def trained(out: Path) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel.from_pretrained(out / "final" / "transformer")


def same(one: torch.nn.Module, other: torch.nn.Module, atol: float = 0.0) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """A finished run."""
    train(make_recipe(data), data / "whole")
    return data / "whole"


def test_a_run_leaves_a_transformer_that_diffusers_loads(whole: Path) -> None:
    values = json.loads((whole / "result.json").read_text("utf-8"))
    assert values["complete"]
    assert 0 < values["validation_loss"] < 10
    base = QwenImageTransformer2DModel.from_pretrained(whole / "base" / "transformer")
    assert not same(trained(whole), base)


def test_blocks_that_wait_change_no_bit(data: Path, tmp_path: Path) -> None:
    """Previews and evaluation among the steps, and a run that goes on with them from a checkpoint without."""
    lora = ["tune={attn: {mode: lora, rank: 2}}", "sampling={preview: 2, steps: 2}", "train.recompute=true"]
    waiting = ["speed.offload_blocks=2"]
    train(make_recipe(data, *lora, "train.steps=4"), tmp_path / "plain")
    train(make_recipe(data, *lora, *waiting), tmp_path / "waiting")
    shutil.copytree(tmp_path / "plain", tmp_path / "goes_on")
    for file in ("final", "result.json", "checkpoints/step-000004"):
        path = tmp_path / "goes_on" / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(make_recipe(data, *lora, *waiting), tmp_path / "goes_on")
    plain, *others = (load_file(tmp_path / run / "final" / LORA) for run in ("plain", "waiting", "goes_on"))
    assert all(torch.equal(plain[name], other[name]) for other in others for name in plain)


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(data: Path, whole: Path, tmp_path: Path) -> None:
    train(make_recipe(data, "batch.micro=1"), tmp_path / "run")
    assert same(trained(whole), trained(tmp_path / "run"), atol=1e-4)


ZERO = [pytest.mark.deepspeed, pytest.mark.skipif(not find_spec("deepspeed"), reason="none there")]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "recompute"),
    [("ddp", False), ("fsdp2", False), ("fsdp2", True), pytest.param("zero3", False, marks=ZERO)],
)
def test_two_processes_train_what_one_trains(
    strategy: str, recompute: bool, data: Path, whole: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "two"
    file.write_text(dump(make_recipe(data, f"train.recompute={str(recompute).lower()}")), encoding="utf-8")
    command = [sys.executable, "-m", "qvl_edit", "train", str(file), "--nproc", "2", "--out", str(out)]
    command += [f"parallel.strategy={strategy}"]
    assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400).returncode == 0
    assert same(trained(whole), trained(out), atol=1e-5)
    one, two = (json.loads((run / "result.json").read_text("utf-8"))["validation_loss"] for run in (whole, out))
    assert two == pytest.approx(one, rel=1e-5)
    drawn = [sorted((run / "samples").glob("step-*.png")) for run in (whole, out)]
    assert [file.name for file in drawn[0]] == [file.name for file in drawn[1]] != []
    for ours, theirs in zip(*drawn, strict=True):
        assert np.abs(np.asarray(Image.open(ours), int) - np.asarray(Image.open(theirs), int)).max() <= 1


def test_a_run_goes_on_to_the_bit(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "result.json").unlink()
    shutil.rmtree(run / "final")
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    train(make_recipe(data), run)
    assert same(trained(whole), trained(run))


@pytest.mark.parametrize(("change", "said"), [("pictures.vl_size=112", "resize"), ("train.precision=bf16", "dtype")])
def test_embeddings_of_another_origin_are_refused(data: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(BadInput, match=rf"was made with {said} .*; name another folder in stored.embeddings, or write"):
        train(make_recipe(data, change), tmp_path / "run")


def test_training_needs_no_text_encoder(data: Path, whole: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(whole / "base", tmp_path / "base")
    for file in (tmp_path / "base" / "text_encoder").glob("*.safetensors"):
        file.unlink()
    train(make_recipe(data, f"model.name={tmp_path / 'base'}", "train.steps=1"), tmp_path / "run")
    assert (tmp_path / "run" / "final" / "transformer").is_dir()
    assert "the text encoder's weights are not in" in capsys.readouterr().out


def test_a_base_of_the_hub_is_edited_with_at_the_commit_that_was_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache layout: a branch is a file that holds a commit, a commit is a folder."""
    from huggingface_hub import constants

    repository, first, second = tmp_path / "models--qvl--tiny", "0" * 40, "1" * 40
    for commit in (first, second):
        tiny(repository / "snapshots" / commit, coder="patches")
    (repository / "refs").mkdir()
    branch = repository / "refs" / "main"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    recipe = make_recipe(data, "model.name=qvl/tiny")
    for revision in (None, "main"):
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": revision})})
        run = RunFolder(tmp_path / f"run-{revision}")
        run.path.mkdir()
        branch.write_text(first, encoding="utf-8")
        with processes(recipe.parallel) as world:
            assert build(recipe, run, world).about["base_commit"] == first
        branch.write_text(second, encoding="utf-8")
        assert Settings.read(run.path).revision == first
        assert find_trained(run.path).checkpoint == repository / "snapshots" / first


def test_a_run_begins_with_the_weights_of_another(data: Path, whole: Path) -> None:
    recipe = make_recipe(data, f"model.init_from={whole / 'final'}")
    begun = transformer_of(recipe.model, whole / "base")
    transformer, _ = open_transformer(recipe, begun, torch.float32, torch.device("cpu"))
    assert same(transformer, trained(whole))
    with pytest.raises(BadInput, match="has no transformer/ to begin with"):
        transformer_of(make_recipe(data, f"model.init_from={data}").model, whole / "base")


def test_adapters_are_loaded_by_the_pipeline(data: Path, tmp_path: Path) -> None:
    recipe = make_recipe(data, "tune={attn: {mode: lora, rank: 4, alpha: 8}}", "train.steps=2", "optim.lr=1e-2")
    train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "final" / "transformer").exists()
    pipe = QwenImageEditPlusPipeline.from_pretrained(tmp_path / "run" / "base")
    arguments = prediction_of(pipe.transformer)
    pipe.load_lora_weights(tmp_path / "run" / "final")
    with torch.no_grad():
        with_lora = pipe.transformer(**arguments)[0]
        pipe.transformer.disable_adapters()
        without = pipe.transformer(**arguments)[0]
    assert not torch.allclose(with_lora, without, atol=1e-4)

    with processes(recipe.parallel) as world:
        parts = build(recipe, RunFolder(tmp_path / "run"), world)
        newest = max((tmp_path / "run" / "checkpoints").iterdir())
        values = {name: value for file in newest.glob("*.safetensors") for name, value in load_file(file).items()}
        own = dict(parts.model.named_parameters())
        found = {name: values[key] for name in own for key in (name, f"model.{name}") if key in values}
        assert found
        parts.model.load_state_dict(found, strict=False)
        with torch.no_grad():
            assert torch.allclose(parts.model(**arguments)[0], with_lora, atol=1e-5)


def test_what_changes_nothing_leaves_a_finished_run_alone(data: Path, whole: Path) -> None:
    moved = shutil.copytree(data / "embeddings", data / "moved", dirs_exist_ok=True)
    finished = json.loads((whole / "result.json").read_text("utf-8"))
    assert train(make_recipe(data, "pictures.vae_batch=2", f"stored.embeddings={moved}"), whole) == finished


def test_too_little_memory_is_answered_by_the_plan(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 TiB")

    monkeypatch.setattr("qvl_edit.build.edit_loss", full)
    with pytest.raises(QVLError, match=r"memory is full; by the plan a step needs 0\.\d GiB: ") as caught:
        train(make_recipe(data), tmp_path / "run")
    assert "max_length" not in str(caught.value)
    assert "media" not in str(caught.value)


def test_each_process_finds_the_checkpoint_on_its_own_machine(whole: Path, data: Path, tmp_path: Path) -> None:
    world = World(1, 1, torch.device("cpu"), "ddp")  # not the first, whose folders may be those of another machine
    recipe = make_recipe(data, f"model.name={whole / 'base'}")
    assert checkpoint_of(recipe, RunFolder(tmp_path), world) == whole / "base"


def test_weights_without_a_place_are_not_lost_in_silence(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"nowhere\.weight"):
        save_transformer(tmp_path, {"nowhere.weight": torch.zeros(1)}, lambda: trained(whole))


def prediction_of(transformer: Any) -> dict[str, Any]:
    """Arguments of a call."""
    torch.manual_seed(0)
    config = transformer.config
    return {
        "hidden_states": torch.randn(1, 8, config.in_channels),
        "encoder_hidden_states": torch.randn(1, 5, config.joint_attention_dim),
        "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.bool),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 2, 2), (1, 2, 2)]],
        "return_dict": False,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["stored.embeddings=null"], "stored.embeddings: is not given; write a folder with `qvl-edit extract RECIPE"),
        (["pictures.vl_size=112"], "was made with resize"),
        (["mixture.tasks=a=1,c=1"], 'mixture.tasks: there is no task "c"'),
        (["mixture.sources=3=1"], "mixture.sources: 3 has weight 1"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(data: Path, tmp_path: Path, changes: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        train(make_recipe(data, *changes), tmp_path / "run")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
