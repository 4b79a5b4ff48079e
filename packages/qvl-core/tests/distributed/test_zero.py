"""DeepSpeed's ZeRO on gloo: the same run as one process, whose checkpoints it reads and writes."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import die_after, together, toy_run
from safetensors.torch import load_file
from torch import nn
from toy import STEPS, ToyBatches, network, toy_parts, toy_recipe

from qvl_core.errors import BadInput
from qvl_core.run import RunFolder
from qvl_core.training import checkpoint, zero
from qvl_core.training.engine import Engine
from qvl_core.training.world import World

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.distributed, pytest.mark.deepspeed]
TOLERANCE = 1e-5


def run(out: Path, strategy: str, micro: int = 2, die_at: int = 0, in_step: bool = False) -> None:
    """A toy run with several micro-batches, a step that is not applied, evaluations, and an average of the weights.
    Of so small a model nothing has to go between two layers, if it is not told.

    Process 1 calls the model thrice as often when it evaluates, except in step.
    """

    def evaluate(model: nn.Module, world: Any, final: bool) -> dict[str, float]:
        x = torch.linspace(-1, 1, 32).reshape(8, 4)
        for _ in range(2 if in_step else 1 + 2 * world.rank):
            loss = float(((model(x) - x.sum(1, keepdim=True)) ** 2).mean())
        if strategy == "zero3":
            first = next(model.parameters())  # by its name DeepSpeed would gather it
            assert bool(first.numel()) is not in_step
        return {"validation_loss": world.first(loss)}

    zero.LIVE = 1
    parts = toy_parts(network(dropout=0.0), ToyBatches(3, micro, (3,)), evaluate=evaluate, in_step=in_step)
    recipe = toy_recipe(parallel={"strategy": strategy}, optim={"ema": 0.5}, evaluate={"every": 3})
    outcome = toy_run(out, replace(parts, callbacks=[die_after(die_at)]), recipe)
    (out / "figures").write_text(json.dumps(outcome.figures | {"skipped": outcome.progress.skipped}), encoding="utf-8")


def difference(out: Path, reference: Path) -> float:
    """Of final/, and of the last checkpoint's weights, averages and step counts."""
    last = f"checkpoints/step-{STEPS:06d}"
    names = [f"{last}/{kind}-00000.safetensors" for kind in ("weights", "optimizer", "average")]
    largest = 0.0
    for file in ("final/model.safetensors", *names):
        one, other = (load_file(path / file) for path in (out, reference))
        assert one.keys() == other.keys()
        largest = max(largest, *(float((one[name] - other[name]).abs().max()) for name in one))
    return largest


def log_steps(out: Path) -> list[list[float]]:
    records = [record for record in RunFolder(out).read_metrics() if "loss" in record]
    return [[record[name] for name in ("step", "loss", "error", "grad_norm")] for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, "single")
    return out


@pytest.mark.parametrize(
    ("strategy", "in_step"), [("zero1", False), ("zero2", False), ("zero3", False), ("zero3", True)]
)
def test_equal_to_one_process_also_killed_and_resumed(
    strategy: str, in_step: bool, whole: Path, tmp_path: Path
) -> None:
    """What is resumed by one process ends as well."""
    out = tmp_path / "run"
    assert 0 not in together(2, run, out, strategy, 2, 5, in_step)
    shutil.copytree(out, tmp_path / "single")
    assert together(2, run, out, strategy, 2, 0, in_step) == [0, 0]
    assert difference(out, whole) < TOLERANCE
    for ours, theirs in zip(log_steps(out), log_steps(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    figures, expected = (json.loads((path / "figures").read_text(encoding="utf-8")) for path in (out, whole))
    assert figures == pytest.approx(expected, rel=1e-5)
    assert figures["skipped"] == 1
    run(tmp_path / "single", "single")
    assert difference(tmp_path / "single", whole) < TOLERANCE


def test_what_one_process_began(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert together(1, run, out, "single", 2, 5) != [0]
    found, _ = checkpoint.newest(out / "checkpoints")
    assert found is not None
    assert found.step == 4
    assert together(2, run, out, "zero3") == [0, 0]
    assert difference(out, whole) < TOLERANCE


def adapted(out: Path, strategy: str) -> None:
    """As with LoRA: bf16 weights that are frozen and fp32 weights that are trained."""
    model = network(dropout=0.0).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in {"0.bias", "3.weight"}
    parts = toy_parts(model)
    groups = [
        group._replace(parameters={name: p for name, p in group.parameters.items() if p.requires_grad})
        for group in parts.groups
    ]
    recipe = toy_recipe(parallel={"strategy": strategy}, train={"steps": STEPS, "precision": "bf16"})
    toy_run(out, replace(parts, groups=groups), recipe)
    assert {str(p.dtype) for p in model.parameters()} == {"torch.bfloat16", "torch.float32"}


def test_frozen_bf16_and_trained_fp32_weights(tmp_path: Path) -> None:
    assert together(2, adapted, tmp_path / "two", "zero3") == [0, 0]
    adapted(tmp_path / "one", "single")
    one, two = (load_file(tmp_path / name / "final/model.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-3


def engine(**blocks: Any) -> Engine:
    recipe = toy_recipe(parallel={"strategy": "zero2"}, **blocks)
    return Engine(toy_parts(network()), recipe, World(0, 1, torch.device("cpu"), "zero2"))


def test_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="zero2 shares the averages of fused AdamW alone"):
        engine(optim={"name": "adamw_8bit"})
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(BadInput, match=r"zero2 needs deepspeed; pip install 'qvl-core\[zero\]'"):
        engine()
    with pytest.raises(BadInput, match="zero3 shares a run among processes and there is one"):
        toy_run(tmp_path, recipe=toy_recipe(parallel={"strategy": "zero3"}))
