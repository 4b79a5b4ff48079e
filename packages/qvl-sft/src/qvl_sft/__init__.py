"""Fine-tune Qwen3-VL: LoRA or in full per module group, packed, resumable to the bit; chat, evaluate, merge, export.

from pathlib import Path
from qvl_core.recipe.load import load
from qvl_sft import Chat, load_trained, train
from qvl_sft.recipe import RECIPE

train(load(RECIPE, "lora_4b", ["data.train=my_data.parquet"], "qvl_sft"), out=Path("runs/mine"))
print(Chat(*load_trained("runs/mine")).ask("What is this?", ["photo.jpg"]))
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qvl_sft.train import train

if TYPE_CHECKING:
    from qvl_sft.chat import Chat
    from qvl_sft.trained import load_trained

__all__ = ["Chat", "load_trained", "train"]
__version__ = version("qvl-sft")


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    rooms = {"Chat": "qvl_sft.chat", "load_trained": "qvl_sft.trained"}
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(rooms[name]), name)
