"""Qwen3-VL that draws: learned queries, a connector and Sana, trained, sampled and evaluated.

from pathlib import Path
from qvl_core.recipe.load import load
from qvl_metaquery import MetaQueryPipeline, train
from qvl_metaquery.recipe import RECIPE

train(load(RECIPE, "tiny", [], "qvl_metaquery"), out=Path("runs/mine"))
MetaQueryPipeline.from_pretrained("runs/mine")(caption="a handwritten seven").images[0].save("seven.png")
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qvl_metaquery.train import train

if TYPE_CHECKING:
    from qvl_metaquery.checkpoint import find_newest_checkpoint
    from qvl_metaquery.pipeline import MetaQueryPipeline

__all__ = ["MetaQueryPipeline", "find_newest_checkpoint", "train"]
__version__ = version("qvl-metaquery")


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    rooms = {
        "MetaQueryPipeline": "qvl_metaquery.pipeline",
        "find_newest_checkpoint": "qvl_metaquery.checkpoint",
    }
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(rooms[name]), name)
