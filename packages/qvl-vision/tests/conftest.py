"""What the tests share: one tiny base, and the tiny checkpoint of every encoder. Each is made once."""

import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

sys.path.insert(
    0, str(Path(__file__).parent)
)  # encoders.py and samples.py are imported by name, in child processes too

from encoders import CONFIGS, write_encoder

from qvl_core.qwen3vl.tiny import tiny


@pytest.fixture(autouse=True, scope="session")
def quiet_single_thread():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny stock Qwen3-VL."""
    return tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny encoders by name."""
    home = tmp_path_factory.mktemp("encoders")
    return {name: write_encoder(name, home / name) for name in CONFIGS}
