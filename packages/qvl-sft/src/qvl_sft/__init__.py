"""Fine-tune Qwen3-VL: LoRA or in full per module group, packed, resumable to the bit; chat, evaluate, merge.

from pathlib import Path
from qvl_core.recipe.load import load
from qvl_sft import train
from qvl_sft.recipe import RECIPE

train(load(RECIPE, "lora_4b", ["data.train=my_data.parquet"], "qvl_sft"), out=Path("runs/mine"))
"""

from importlib.metadata import version

from qvl_sft.train import train

__all__ = ["train"]
__version__ = version("qvl-sft")
