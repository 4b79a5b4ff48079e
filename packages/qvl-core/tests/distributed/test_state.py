"""What is kept beside the weights, among several processes: averages of 8 bits, and the average of the weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness import die_after, together, toy_run
from safetensors.torch import load_file
from torch import nn
from toy import STEPS, toy_parts, toy_recipe
from toy import network as toy_network

pytestmark = pytest.mark.distributed
WIDTH = 1101  # 4 x 1101 values, shared unevenly


def packed(out: Path, strategy: str, die_at: int = 0) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    recipe = toy_recipe(optim={"name": "adamw_8bit"}, parallel={"strategy": strategy})
    parts = toy_parts(network)
    groups = [group._replace(lr=1e-3) for group in parts.groups]
    toy_run(out, replace(parts, groups=groups, callbacks=[die_after(die_at)]), recipe)


def files(out: Path) -> list[bytes]:
    last = out / f"checkpoints/step-{STEPS:06d}"
    return [file.read_bytes() for file in sorted(last.glob("*.safetensors"))]


def difference(out: Path, reference: Path) -> float:
    one, other = (load_file(path / "final/model.safetensors") for path in (out, reference))
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    packed(out, "single")
    return out


def test_eight_bits_beside_one_another(whole: Path, tmp_path: Path) -> None:
    assert together(2, packed, tmp_path / "two", "ddp") == [0, 0]
    assert difference(tmp_path / "two", whole) < 1e-5


def test_eight_bits_shared(whole: Path, tmp_path: Path) -> None:
    """Resumed bit-identically, and by one process within what other blocks make of eight steps of 1e-3."""
    assert together(2, packed, tmp_path / "two", "fsdp2") == [0, 0]
    assert 0 not in together(2, packed, tmp_path / "killed", "fsdp2", 5)
    shutil.copytree(tmp_path / "killed", tmp_path / "one")
    assert together(2, packed, tmp_path / "killed", "fsdp2") == [0, 0]
    assert files(tmp_path / "killed") == files(tmp_path / "two")
    packed(tmp_path / "one", "single")
    assert difference(tmp_path / "two", whole) < 1e-3
    assert difference(tmp_path / "one", whole) < 1e-3


def averaged(out: Path, strategy: str, die_at: int = 0) -> None:
    recipe = toy_recipe(optim={"ema": 0.5}, parallel={"strategy": strategy})
    toy_run(out, replace(toy_parts(toy_network(dropout=0.0)), callbacks=[die_after(die_at)]), recipe)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_average_of_the_weights(strategy: str, tmp_path: Path) -> None:
    """As in one process; killed and resumed bit-identically."""
    averaged(tmp_path / "one", "single")
    assert together(2, averaged, tmp_path / "two", strategy) == [0, 0]
    assert difference(tmp_path / "two", tmp_path / "one") < 1e-6
    assert 0 not in together(2, averaged, tmp_path / "killed", strategy, 5)
    assert together(2, averaged, tmp_path / "killed", strategy) == [0, 0]
    assert files(tmp_path / "killed") == files(tmp_path / "two")
    assert len(files(tmp_path / "two")) == 3
