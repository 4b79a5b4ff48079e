"""Any vision encoder inside Qwen3-VL: swap the tower, train the merger, save, reload, verify.

from qvl_vision import save, swap

model, processor = swap("Qwen/Qwen3-VL-4B-Instruct", "rad_dino")
save(model, processor, "qwen3vl-4b-rad-dino")
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qvl_vision.registry import list_encoders, list_mergers, register_encoder, register_merger

if TYPE_CHECKING:
    from qvl_vision.calibrating import calibrate
    from qvl_vision.checkpoint import load, load_merger, save, save_merger
    from qvl_vision.freezing import freeze
    from qvl_vision.inspecting import inspect
    from qvl_vision.swapping import swap
    from qvl_vision.verifying import verify

__all__ = [
    "calibrate",
    "freeze",
    "inspect",
    "list_encoders",
    "list_mergers",
    "load",
    "load_merger",
    "register_encoder",
    "register_merger",
    "save",
    "save_merger",
    "swap",
    "verify",
]
__version__ = version("qvl-vision")

_ROOMS = {
    "calibrate": "calibrating",
    "freeze": "freezing",
    "inspect": "inspecting",
    "load": "checkpoint",
    "load_merger": "checkpoint",
    "save": "checkpoint",
    "save_merger": "checkpoint",
    "swap": "swapping",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:  # importing the package loads no torch; its first use does
        return getattr(import_module(f"qvl_vision.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'qvl_vision' has no attribute {name!r}")
