"""Qwen-Image-Edit, fine-tuned on pairs of pictures.

from pathlib import Path
from PIL import Image
from qvl_core.recipe.load import load
from qvl_edit import EditPipeline, train
from qvl_edit.recipe import RECIPE

train(load(RECIPE, "tiny", [], "qvl_edit"), out=Path("runs/mine"))
EditPipeline.from_pretrained("runs/mine")("make it red", image=Image.open("a.png")).images[0].save("b.png")
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qvl_edit.train import train

if TYPE_CHECKING:
    from qvl_edit.pipeline import EditPipeline

__all__ = ["EditPipeline", "train"]
__version__ = version("qvl-edit")


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    rooms = {"EditPipeline": "qvl_edit.pipeline"}
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(rooms[name]), name)
