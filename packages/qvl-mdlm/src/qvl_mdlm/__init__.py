"""Qwen3-VL as a masked diffusion model: converted, trained, sampled, infilled and evaluated.

from pathlib import Path
from qvl_core.recipe.load import load
from qvl_mdlm import infill, open_masked, train
from qvl_mdlm.recipe import RECIPE

train(load(RECIPE, "tiny", [], "qvl_mdlm"), out=Path("runs/mine"))
print(infill(*open_masked("runs/mine"), "What is this?", "It is a [4] of [2].", ["photo.jpg"]).text)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qvl_mdlm.infill import infill
from qvl_mdlm.train import train

if TYPE_CHECKING:
    from qvl_mdlm.collator import create_qwen3_vl_collator
    from qvl_mdlm.model import Qwen3VLForMaskedLM
    from qvl_mdlm.opening import open_masked
    from qvl_mdlm.trainer import Qwen3VLTrainer

__all__ = ["Qwen3VLForMaskedLM", "Qwen3VLTrainer", "create_qwen3_vl_collator", "infill", "open_masked", "train"]
__version__ = version("qvl-mdlm")


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    rooms = {
        "Qwen3VLForMaskedLM": "qvl_mdlm.model",
        "Qwen3VLTrainer": "qvl_mdlm.trainer",
        "create_qwen3_vl_collator": "qvl_mdlm.collator",
        "open_masked": "qvl_mdlm.opening",
    }
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(rooms[name]), name)
