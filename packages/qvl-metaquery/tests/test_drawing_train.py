"""Training: what is frozen stays to the bit, all else learns; the same again after a kill and however it is dealt."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sketches import mixed, written

import qvl_metaquery.build
from qvl_core.errors import QVLError
from qvl_core.qwen3vl.tiny import tiny as tiny_mllm
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training.log import peak_flops
from qvl_core.training.optim import Optimizer
from qvl_core.training.parts import Callbacks, Parts
from qvl_core.training.world import processes
from qvl_metaquery import MetaQueryPipeline, train
from qvl_metaquery.prompts import Prompt
from qvl_metaquery.recipe import RECIPE
from qvl_metaquery.settings import Settings
from qvl_metaquery.tiny import tiny
from qvl_vision.tiny import tiny as tiny_swapped

STEPS = 4
FROZEN = "tune.transformer.mode=frozen"

WITHOUT_EFFECT = "attn2.to_k.bias"
"""Moves all scores of a query alike, which the softmax takes back: its gradient is rounding, and may be none."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Qwen3-VL in qwen/ and a tiny Sana in sana/."""
    folder = tmp_path_factory.mktemp("metaquery") / "base"
    tiny(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("drawings") / "train.parquet", mixed())


@pytest.fixture
def learn(base: Path, data: Path, tmp_path: Path) -> Callable[..., Path]:
    """`learn("name", *overrides)`: a short run of the recipe `tiny`, in its folder."""

    def run(name: str, *changes: str) -> Path:
        given = [f"model.name={base / 'qwen'}", f"sana.name={base / 'sana'}", f"data={{train: {data}}}"]
        short = [f"train.steps={STEPS}", "schedule.warmup=1", "batch.size=4", "checkpoint.every=2", "log.every=1"]
        how = ["flow.task=instruct", "queries.number=4", "optim.eps=1e-4", "optim.weight_decay=0.1"]
        train(load(RECIPE, "tiny", [*given, *short, *how, *changes], "qvl_metaquery"), tmp_path / name)
        return tmp_path / name

    return run


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in RunFolder(run).read_metrics() if "loss" in record]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All that a run has trained."""
    found = load_file(run / "final/connector.safetensors")
    for file in (run / "final").glob("transformer/*.safetensors"):
        found |= {f"transformer.{name}": value for name, value in load_file(file).items()}
    return found


def difference(one: Path, other: Path) -> float:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Parts]]:
    """`watch(Callbacks(...))`: what the next runs are made of, with callbacks."""
    build = qvl_metaquery.build.build

    def start(*callbacks: Callbacks) -> list[Parts]:
        found: list[Parts] = []

        def watched(*arguments: Any) -> Parts:
            found.append(replace(build(*arguments), callbacks=callbacks))
            return found[-1]

        monkeypatch.setattr(qvl_metaquery.build, "build", watched)
        return found

    return start


# What changes


@pytest.mark.parametrize("sana", ["full", "frozen"])
def test_what_is_frozen_stays_to_the_bit_and_all_else_learns(
    sana: str,
    learn: Callable[..., Path],
    watch: Callable[..., list[Parts]],
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, first = watch(), {}
    build = qvl_metaquery.build.build

    def seen(*arguments: Any) -> Parts:
        made = build(*arguments)
        first.update({name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad})
        return made

    monkeypatch.setattr(qvl_metaquery.build, "build", seen)
    run = learn("run", f"tune.transformer.mode={sana}")
    model: Any = found[0].model
    before = load_file(base / "qwen/model.safetensors")
    after = model.mllm.state_dict()
    assert "lm_head.weight" in after
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    start = load_file(base / "sana/transformer/diffusion_pytorch_model.safetensors")
    same = {name for name, value in start.items() if torch.equal(model.transformer.state_dict()[name], value)}
    if sana == "frozen":
        assert same == start.keys()
    else:
        assert not {name for name in same if not name.endswith(WITHOUT_EFFECT)}
    new = {name: value for name, value in first.items() if not name.startswith("transformer.")}
    assert {name for name, value in new.items() if not torch.equal(weights(run)[name], value)} == new.keys()
    assert (run / "final/transformer").is_dir() == (sana == "full")
    assert (base / "qwen/model.safetensors").is_file()


def test_patches_are_a_product_unless_it_is_switched_off(
    learn: Callable[..., Path], watch: Callable[..., list[Parts]]
) -> None:
    found = watch()
    runs = [learn(name, f"speed.linear_patches={name}") for name in ("true", "false")]
    towers: list[Any] = [parts.model.mllm.model.visual for parts in found]  # type: ignore[union-attr]
    assert [type(tower.patch_embed.proj).__name__ for tower in towers] == ["PatchProduct", "Conv3d"]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)


def test_too_little_memory_is_answered_by_the_plan(learn: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 TiB")

    monkeypatch.setattr(qvl_metaquery.build, "drawing_loss", full)
    with pytest.raises(QVLError, match=r"memory is full; by the plan a step needs 0\.\d GiB: ") as caught:
        learn("run")
    assert "max_length" not in str(caught.value)
    assert "media" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_live_line_has_mfu(learn: Callable[..., Path]) -> None:
    if peak_flops(name := torch.cuda.get_device_name()) is None:
        pytest.skip(f"the peak of {name} is not known")
    records = [record for record in RunFolder(learn("run")).read_metrics() if "loss" in record]
    assert len(records) == STEPS
    assert all(0 <= record["mfu"] < 1 for record in records)


def test_no_trained_parameter_is_dead(
    learn: Callable[..., Path], watch: Callable[..., list[Parts]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: dict[str, torch.Tensor] = {}
    parts, update = watch(), Optimizer.update

    def looked_at(self: Optimizer, *arguments: Any) -> Any:
        named = parts[0].model.named_parameters()
        gradients.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        return update(self, *arguments)

    monkeypatch.setattr(Optimizer, "update", looked_at)
    learn("run", "train.steps=1")
    model = parts[0].model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert gradients.keys() == trained
    dead = {name for name, gradient in gradients.items() if not gradient.abs().max() > 0}
    assert not {name for name in dead if not name.endswith(WITHOUT_EFFECT)}
    rows = gradients["queries"].abs().amax(1)
    assert rows[-1] == 0  # behind the queries, read by none
    assert (rows[:-1] > 0).all()


def test_decay_is_for_matrices_alone(learn: Callable[..., Path], watch: Callable[..., list[Parts]]) -> None:
    found = watch()
    learn("run", "train.steps=1")
    decay = {group.name: (group.weight_decay, set(group.parameters)) for group in found[0].groups}
    assert decay["queries (no decay)"] == (0.0, {"queries"})
    names = {name for rate, names in decay.values() if rate for name in names}
    assert names
    assert not any(name.endswith((".bias", "norm.weight", "_scale")) for name in names)


# The same again


class _Killed(BaseException):
    """Nothing may catch it."""


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_ends_with_the_same_bits(
    step: int, learn: Callable[..., Path], watch: Callable[..., list[Parts]]
) -> None:
    how = ("optim.ema=0.9",)
    whole = learn("whole", *how)

    def die(done: int) -> None:
        if done == step:
            raise _Killed

    watch(Callbacks(on_step=die))
    with pytest.raises(_Killed):
        learn("killed", *how)
    watch()
    again = learn("killed", *how)
    assert losses(again) == losses(whole)
    assert len(losses(whole)) == STEPS
    assert difference(again, whole) == 0


@pytest.mark.slow
def test_kill_9_is_survived(learn: Callable[..., Path], tmp_path: Path) -> None:
    whole, killed = learn("whole"), tmp_path / "killed"
    command = [sys.executable, "-m", "qvl_metaquery", "train", str(whole / "recipe.yaml"), "--out", str(killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment) as first:
        while first.poll() is None and not (killed / "checkpoints/step-000002").is_dir():
            time.sleep(0.001)
        first.kill()
    assert not (killed / "result.json").is_file()
    assert subprocess.run(command, env=environment, timeout=400).returncode == 0
    assert losses(killed) == losses(whole)
    assert difference(killed, whole) == 0


@pytest.mark.parametrize(
    "how",
    [
        ("batch.micro=2",),
        ("batch.micro=1",),
        ("train.recompute=true",),
        pytest.param(("data.workers=1",), marks=pytest.mark.slow),
    ],
    ids=["2 x 2", "4 x 1", "recompute", "worker"],
)
def test_how_it_is_computed_changes_nothing(how: tuple[str, ...], learn: Callable[..., Path]) -> None:
    one, two = learn("one"), learn("two", *how)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert difference(one, two) < 1e-5


SHARDED = [pytest.mark.slow, pytest.mark.deepspeed, pytest.mark.skipif(not find_spec("deepspeed"), reason="none there")]
SPREAD = [
    pytest.param("ddp", ()),
    pytest.param("ddp", (FROZEN,), marks=pytest.mark.slow),
    pytest.param("ddp", ("train.recompute=true",), marks=pytest.mark.slow),
    pytest.param("fsdp2", (), marks=pytest.mark.slow),
    pytest.param("fsdp2", (FROZEN, "train.recompute=true"), marks=pytest.mark.slow),
    *(pytest.param(zero, (), marks=SHARDED) for zero in ("zero1", "zero2", "zero3")),
]


def in_two(one: Path, to: Path, strategy: str) -> Path:
    """The run `one` again, in two processes."""
    command = [sys.executable, "-m", "qvl_metaquery", "train", str(one / "recipe.yaml"), "--nproc", "2"]
    command += [f"parallel.strategy={strategy}", "--out", str(to)]
    assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400).returncode == 0
    return to


@pytest.mark.distributed
@pytest.mark.parametrize(("strategy", "how"), SPREAD)
def test_two_processes_are_one(strategy: str, how: tuple[str, ...], learn: Callable[..., Path], tmp_path: Path) -> None:
    one = learn("one", *how)
    two = in_two(one, tmp_path / "two", strategy)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert difference(one, two) < 1e-5


@pytest.mark.slow
@pytest.mark.distributed
def test_sharded_in_16_bits_and_recomputed_the_loss_is_that_of_one_process(
    learn: Callable[..., Path], tmp_path: Path
) -> None:
    one = learn("one", "train.precision=bf16", "train.recompute=true")
    two = in_two(one, tmp_path / "two", "fsdp2")
    assert losses(two) == pytest.approx(losses(one), rel=1e-2)  # bf16 rounds to 1/256
    assert min(losses(two)) < max(losses(two)) / 1.5  # the steps are far larger than that


# Other models


@pytest.mark.parametrize("kind", [{"tied": False}, {"experts": 4}], ids=["untied", "experts"])
def test_other_shapes_of_qwen_teach_as_well(kind: dict[str, Any], learn: Callable[..., Path], tmp_path: Path) -> None:
    tiny_mllm(tmp_path / "qwen", **kind)
    run = learn("run", f"model.name={tmp_path / 'qwen'}", "train.steps=2")
    assert len(losses(run)) == 2
    assert weights(run)["queries"].shape == (6, 128)


def test_a_swapped_tower_teaches_as_well(learn: Callable[..., Path], tmp_path: Path) -> None:
    tiny_swapped(tmp_path / "swapped")
    run = learn("run", f"model.name={tmp_path / 'swapped'}", "train.steps=2")
    assert len(losses(run)) == 2
    pipeline = MetaQueryPipeline.from_pretrained(run)
    assert type(pipeline.model.mllm.model.visual).__module__ == "qvl_vision.tower"
    shown = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
    black, white = pipeline.conditions([Prompt("the same", (picture,)) for picture in shown])
    assert (black - white).abs().max() > 1e-4


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="none there")
def test_qwen_in_four_bits_teaches_as_well(learn: Callable[..., Path], watch: Callable[..., list[Parts]]) -> None:
    found = watch()
    run = learn("run", "model.quantization=nf4", "train.steps=2")
    model: Any = found[0].model
    layer = model.mllm.model.language_model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit"
    assert losses(run) != losses(learn("plain", "train.steps=2"))


def test_the_average_is_what_is_left(learn: Callable[..., Path]) -> None:
    plain, averaged = learn("plain"), learn("averaged", "optim.ema=0.9")
    assert losses(averaged) == losses(plain)
    assert difference(plain, averaged) > 0


def test_bases_of_the_hub_are_drawn_with_at_the_commits_that_were_trained(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache layout: a branch is a file that holds a commit, a commit is a folder."""
    from huggingface_hub import constants

    first, second = "0" * 40, "1" * 40
    branches = []
    for name in ("qwen", "sana"):
        repository = tmp_path / f"models--qvl--{name}"
        for commit in (first, second):
            shutil.copytree(base / name, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        branches.append(repository / "refs" / "main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    changes = ["model.name=qvl/qwen", "sana.name=qvl/sana", f"data={{train: {data}}}", FROZEN]
    recipe, run = load(RECIPE, "tiny", changes, "qvl_metaquery"), RunFolder(tmp_path / "run")
    run.path.mkdir()
    for branch in branches:
        branch.write_text(first, encoding="utf-8")
    with processes(recipe.parallel) as world:
        assert qvl_metaquery.build.build(recipe, run, world).about["base_commit"] == first
    for branch in branches:
        branch.write_text(second, encoding="utf-8")
    found = Settings.read(run.path)
    assert (found.mllm, found.mllm_revision) == ("qvl/qwen", first)
    assert (found.sana, found.sana_revision) == ("qvl/sana", first)
