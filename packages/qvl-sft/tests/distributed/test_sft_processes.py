"""Two processes train the same model as one: text and pictures mixed, LoRA and a whole merger, DDP and FSDP."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import qvl_sft
from safetensors.torch import load_file

from qvl_core.qwen3vl.tiny import tiny
from qvl_core.run import RunFolder
from qvl_data.convert import write_samples
from qvl_data.example.digits import digits_dataset
from qvl_data.sample import Message, Part, Sample
from qvl_vision.tiny import tiny_encoder

pytestmark = pytest.mark.distributed
TOLERANCE = 1e-5  # fp32: gradients summed in another order, four AdamW steps

RECIPE = """
version: 1
model: {{name: {place}/base}}
tune:
  llm:    {{mode: lora, rank: 4, alpha: 8}}
  merger: {{mode: full}}
data: {{train: {place}/train.parquet, validation: {place}/validation.parquet}}
batch: {{size: 4, micro: 1, max_length: 128}}
optim: {{lr: 1e-3, eps: 1e-4}}
train: {{steps: 4}}
checkpoint: {{every: 2}}
evaluate: {{every: 2, max_new_tokens: 2}}
log: {{every: 1}}
"""


def texts(number: int) -> list[Sample]:
    """Samples without a picture: a process that gets only these would not run its vision tower."""

    def says(role: Any, text: str) -> Message:
        return Message(role=role, parts=(Part(type="text", text=text),))

    return [
        Sample(
            id=f"text-{index}",
            task="chat",
            messages=(says("user", f"{index} + 1 ="), says("assistant", f"{index + 1}")),
        )
        for index in range(number)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml, data, base/, and the run of one process in one/."""
    folder = tmp_path_factory.mktemp("processes")
    write_samples([*digits_dataset("digit", "train")[:6], *texts(10)], folder / "train.parquet")
    write_samples([*digits_dataset("digit", "validation")[:5], *texts(2)], folder / "validation.parquet")
    tiny(folder / "base")
    (folder / "recipe.yaml").write_text(RECIPE.format(place=folder.as_posix()), encoding="utf-8")
    done = qvl_sft("train", str(folder / "recipe.yaml"), "--out", str(folder / "one"))
    assert done.code == 0, done.err
    return folder


def command(place: Path, name: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "qvl_sft", "train", str(place / "recipe.yaml"), *more, "--out", str(place / name)]


def train(place: Path, name: str, *more: str) -> int:
    return subprocess.run(command(place, name, *more), env=environment(), timeout=240).returncode


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def difference(one: Path, other: Path) -> float:
    ours, theirs = (load_file(run / "final/adapter_model.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def figures(run: Path) -> list[list[float]]:
    """The logged losses and norms, and what the evaluations found."""
    names: Sequence[str] = ("step", "loss", "grad_norm", "lr", "validation_loss", "validation_exact_match")
    records = RunFolder(run).read_metrics()
    wanted = [record for record in records if "loss" in record or record.get("event") == "evaluation"]
    return [[record[name] for name in names if name in record] for record in wanted]


ZERO = [pytest.mark.slow, pytest.mark.deepspeed, pytest.mark.skipif(not find_spec("deepspeed"), reason="no deepspeed")]
STRATEGIES = [
    "ddp",
    pytest.param("fsdp2", marks=pytest.mark.slow),
    *(pytest.param(f"zero{stage}", marks=ZERO) for stage in (1, 2, 3)),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_are_one(strategy: str, place: Path) -> None:
    assert train(place, strategy, "--nproc", "2", f"parallel.strategy={strategy}") == 0
    run, one = place / strategy, place / "one"
    assert difference(run, one) < TOLERANCE
    assert len(figures(one)) == 4 + 2
    for ours, theirs in zip(figures(run), figures(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    answers = [(path / "predictions.jsonl").read_text(encoding="utf-8").splitlines() for path in (run, one)]
    assert sorted(map(_answer, answers[0])) == sorted(map(_answer, answers[1]))
    for path in (run, one):
        assert {"final", "report.html", "result.json"} <= {entry.name for entry in path.iterdir()}


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_processes_are_one_in_two_stages_with_a_tower_that_is_trained(strategy: str, place: Path) -> None:
    """Stage one and two in the same processes. Of the encoder some weights (mask token, last layer) are never used."""
    if not (place / "encoder").is_dir():
        tiny_encoder(place / "encoder")
    changes = [
        f"model.vision={{encoder: {place / 'encoder'}, feature_layer: -2, max_tokens: 16}}",
        "tune.vision={mode: full, lr: 1e-4}",
        "train.stage=two",
        "train.alignment={steps: 2, lr: 1e-3}",
    ]
    one = place / "one-vision"
    if not one.is_dir():
        done = qvl_sft("train", str(place / "recipe.yaml"), *changes, "--out", str(one))
        assert done.code == 0, done.err
    run = place / f"{strategy}-vision"
    assert train(place, run.name, "--nproc", "2", f"parallel.strategy={strategy}", *changes) == 0
    assert difference(run, one) < TOLERANCE
    for stage, records in (("alignment", 2 + 1), (".", 4 + 2)):
        assert len(figures(one / stage)) == records
        for ours, theirs in zip(figures(run / stage), figures(one / stage), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


def _answer(line: str) -> tuple[str, str, bool]:
    entry = json.loads(line)
    return entry["id"], entry["answer"], entry["correct"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGTERM")
def test_sigterm_to_the_launcher_saves_and_the_same_command_ends_the_run(place: Path) -> None:
    same = command(place, "stopped", "--nproc", "2", "train.steps=80", "checkpoint.every=null", "evaluate.every=null")
    launcher = subprocess.Popen(same, env=environment())
    run = RunFolder(place / "stopped")
    deadline = time.monotonic() + 200
    while not any("loss" in record for record in run.read_metrics()) and time.monotonic() < deadline:
        assert launcher.poll() is None
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 75
    (saved,) = run.checkpoints.iterdir()
    assert not run.final.exists()

    assert subprocess.run(same, env=environment(), timeout=240).returncode == 0
    (resumed,) = [record["step"] for record in run.read_metrics() if record.get("event") == "resume"]
    assert saved.name == f"step-{resumed:06d}"
    steps = [record["step"] for record in run.read_metrics() if "loss" in record]
    assert steps == list(range(1, 81))
    result = run.read_result()
    assert result is not None
    assert (result["complete"], result["steps"]) == (True, 80)
