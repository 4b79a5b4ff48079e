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
from qvl_core.recipe.blocks import Model
from qvl_metaquery.opening import assemble, open_qwen, open_transformer
from qvl_metaquery.settings import Settings
from qvl_metaquery.tiny import tiny
from qvl_metaquery.weights import save

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


@pytest.fixture(scope="session")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that draws 8-pixel pictures, all of its weights random: each prompt asks for another."""
    base, folder = tmp_path_factory.mktemp("drawer") / "base", tmp_path_factory.mktemp("drawer") / "final"
    tiny(base)
    settings = Settings(
        mllm=str(base / "qwen"), sana=str(base / "sana"), queries=8, system="Draw it.", layers=1, size=8
    )
    mllm, processor = open_qwen(Model(name=settings.mllm), "fp32", "cpu")
    transformer = open_transformer(base / "sana" / "transformer", torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = assemble(mllm, transformer, settings)
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    own = {name: value for name, value in model.state_dict().items() if name.startswith(("queries", "connector."))}
    save(folder, settings, own, transformer, processor)
    return folder
