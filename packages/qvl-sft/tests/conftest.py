"""What the tests share: data files, a tiny model that reads digits, and an adapter on it. Each is made once."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # command.py is imported by name, in child processes too

from command import QUICK, qvl_sft, write_digits
from scripted import write_sets

from qvl_core.qwen3vl.tiny import tiny


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dataset folders, digits and parity."""
    return write_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as it is born."""
    return tiny(tmp_path_factory.mktemp("untrained") / "model", seed=0)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions and boxes, a file each."""
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The finished run of the recipe `tiny` at a third of its steps; a minute of processor time is what it may take."""
    began = time.process_time()
    out = tmp_path_factory.mktemp("trained") / "run"
    digits = data / "digits"
    done = qvl_sft(
        "train", "tiny", f"data={{train: {digits}, validation: {digits}, test: {digits}}}", *QUICK, "--out", str(out)
    )
    assert done.code == 0, done.err
    assert time.process_time() - began <= 60
    return out


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory, data: Path, trained: Path) -> Path:
    """The finished run of `tiny_lora` on `trained`, with replay and the merger trained beside LoRA."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    done = qvl_sft(
        "train",
        "tiny_lora",
        f"model.name={trained / 'final'}",
        f"data.train.0.source={data / 'parity'}",
        f"data.train.1.source={data / 'digits'}",
        f"data.test={{source: {data / 'parity'}, take: 120}}",
        "tune.merger={mode: full, lr: 2e-3}",
        "optim.lr=6e-3",
        "train.steps=100",
        "batch.size=16",
        "--out",
        str(out),
    )
    assert done.code == 0, done.err
    return out
