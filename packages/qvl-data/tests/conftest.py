from typing import Any

import pytest


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The processor of the tiny Qwen3-VL: real classes, real chat layout."""
    pytest.importorskip("torch", reason="needs qvl-core[train]; the package itself runs without")
    from transformers import AutoProcessor

    from qvl_core.qwen3vl.tiny import tiny

    folder = tiny(tmp_path_factory.mktemp("tiny"), ["Which digit is this?", "odd even", "The answer is seven."])
    return AutoProcessor.from_pretrained(folder)
