"""What the tests of qvl-mdlm share: a tiny autoregressive checkpoint, and the same as a masked diffusion model."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging as transformers_logging

from qvl_core.qwen3vl.tiny import tiny
from qvl_mdlm.model import Qwen3VLForMaskedLM

sys.path.insert(0, str(Path(__file__).parent))  # asking.py is imported by name
transformers_logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny autoregressive Qwen3-VL, never trained."""
    return tiny(tmp_path_factory.mktemp("mdlm") / "base")


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four experts in each layer, two of them for each token."""
    return tiny(tmp_path_factory.mktemp("mdlm") / "experts", experts=4)


@pytest.fixture(scope="session")
def processor(base: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(base)


@pytest.fixture(scope="session")
def masked(base: Path) -> Callable[..., Any]:
    """`masked(attention="prefix", ...)`: the tiny model as a masked diffusion model, in fp64 so that equal is equal."""

    def load(**options: Any) -> Any:
        return Qwen3VLForMaskedLM.from_pretrained(base, dtype=torch.float64, **options).eval()

    return load
