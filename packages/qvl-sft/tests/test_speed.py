"""The switches of `speed` in whole runs: the same losses with and without, one or several processes, resumed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import qvl_sft
from safetensors.torch import load_file

from qvl_core.qwen3vl.compiling import check_compiler
from qvl_core.run import RunFolder
from qvl_data.convert import write_samples
from qvl_data.example.digits import digits_dataset

# Two epochs and a half of eight digits; the tower is frozen.
RECIPE = """
version: 1
model: {{name: tiny}}
tune: {{llm: {{mode: lora, rank: 4, dropout: 0.1}}}}
data: {{train: {place}/train.parquet}}
batch: {{size: 4, micro: 2, max_length: 128}}
optim: {{lr: 1e-3}}
train: {{steps: 5}}
checkpoint: {{every: 2}}
log: {{every: 1}}
"""
SWITCHED = [
    "speed.cache_features=0.1",
    "speed.offload=true",
    "train.recompute=[llm]",
    "speed.frozen_features=false",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, recipe.yaml and the run `plain`."""
    folder = tmp_path_factory.mktemp("speed")
    write_samples(digits_dataset("digit", "train")[:8], folder / "train.parquet")
    (folder / "recipe.yaml").write_text(RECIPE.format(place=folder.as_posix()), encoding="utf-8")
    train(folder, "plain")
    return folder


def train(place: Path, name: str, *changes: str) -> Path:
    done = qvl_sft("train", str(place / "recipe.yaml"), *changes, "--out", str(place / name))
    assert done.code == 0, done.err
    return place / name


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in RunFolder(run).read_metrics() if "loss" in record]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final/adapter_model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    return all(torch.equal(tensor, weights(b)[name]) for name, tensor in weights(a).items())


def test_a_run_with_the_switches_is_the_same_run(place: Path) -> None:
    run = train(place, "switched", *SWITCHED)
    assert len(list((run / "features").rglob("*.safetensors"))) == 8
    assert losses(run) == pytest.approx(losses(place / "plain"), rel=1e-6)
    again = train(place, "again", *SWITCHED)
    assert losses(again) == losses(run)
    assert same_weights(again, run)


def test_switches_may_be_flipped_in_the_middle(place: Path) -> None:
    plain = place / "plain"
    done = qvl_sft(
        "train", str(place / "recipe.yaml"), *SWITCHED, "speed.label_rows=false", "--out", str(place / "flipped"),
        "--resume", str(plain / "checkpoints/step-000004"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert losses(place / "flipped") == pytest.approx(losses(plain)[4:], rel=1e-5)
    finished = qvl_sft("train", str(place / "recipe.yaml"), *SWITCHED, "--out", str(plain))
    assert finished.code == 0
    assert "is finished" in finished.out


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_processes_with_the_switches(place: Path, strategy: str) -> None:
    command = [sys.executable, "-m", "qvl_sft", "train", str(place / "recipe.yaml"), *SWITCHED, "--nproc", "2"]
    changes = [f"parallel.strategy={strategy}", "tune.llm.dropout=0", "--out", str(place / strategy)]
    assert subprocess.run([*command, *changes], timeout=240).returncode == 0
    alone = train(place, f"alone-{strategy}", "tune.llm.dropout=0")
    assert losses(place / strategy) == pytest.approx(losses(alone), rel=1e-5)
    assert len(list((place / strategy / "features").rglob("*.safetensors"))) == 8


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["tune.merger.mode=full"], "`tune.merger` trains it"),
        (["parallel.strategy=zero3"], "use zero2 or fsdp2"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(place: Path, changes: list[str], sentence: str) -> None:
    done = qvl_sft("train", str(place / "recipe.yaml"), "speed.cache_features=1", *changes, "--out", str(place / "no"))
    assert done.code == 2
    assert sentence in done.err


@pytest.mark.parametrize("verb", ["check", "train"])
def test_no_compiler_is_known_before_the_first_step(place: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    done = qvl_sft(verb, str(place / "recipe.yaml"), "speed.compile=true", "--out", str(place / "uncompiled"))
    assert done.code == 2
    assert re.search(r"^speed\.compile: needs a C(\+\+)? compiler, and there is no .* here; install one", done.err)
    monkeypatch.setenv("CXX", sys.executable)
    check_compiler("cpu")  # what CXX names is taken
