"""What the tests of qvl-metaquery share: a tiny Qwen3-VL whose states differ from prompt to prompt, in fp64."""

import copy
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging as transformers_logging

from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor

sys.path.insert(0, str(Path(__file__).parent))  # drawing.py is imported by name
transformers_logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def processor() -> Any:
    return tiny_processor(["a red fox", "a handwritten seven", "the same digit, inverted"])


@pytest.fixture(scope="session")
def wild(processor: Any) -> Any:
    """Five times the usual first weights, so that what is said depends on the prompt; frozen, in fp64."""
    model = tiny_model(processor.tokenizer, seed=3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    attention.use(model)
    return model.eval().requires_grad_(False)


@pytest.fixture
def mllm(wild: Any) -> Any:
    return copy.deepcopy(wild)
