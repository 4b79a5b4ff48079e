"""The page that answers the flags of other scripts: its recipe keys exist, and no flag of the documents is left out."""

import re
from pathlib import Path

import pytest

from qvl_core.recipe.load import load
from qvl_sft.recipe import RECIPE

PAGE = Path(__file__).parents[1] / "docs/sft/flags.md"
ROWS = [
    (cells[1].strip(), cells[2].strip())
    for line in PAGE.read_text("utf-8").splitlines()
    if line.startswith("| ") and len(cells := line.split("|")) >= 4 and cells[1].strip() not in ("There", "---")
]
# What the two documents that users come with set.
FLAGS = """
model_name_or_path tune_mm_llm tune_mm_mlp tune_mm_vision lora_enable lora_r lora_alpha lora_dropout learning_rate
mm_projector_lr vision_tower_lr dataset_use data_packing max_pixels min_pixels video_fps video_max_frames
video_min_frames video_max_pixels video_min_pixels custom_vision_encoder
"""
ARGUMENTS = """
r= lora_alpha target_modules modules_to_save load_in_4bit use_gradient_checkpointing use_rslora loftq_config
max_steps optim= seed packing attn_implementation BitsAndBytesConfig train_on_responses_only
"""


def overrides(cell: str) -> list[str]:
    """The overrides in the code of a table cell; in brackets, spaces separate nothing."""
    codes = [code for code in re.findall(r"`([^`]+)`", cell) if re.match(r"[a-z_]+(\.\w+)*=", code)]
    return [word.replace('"', "") for code in codes for word in re.split(r" (?=[a-z_]+\.[\w.]+=)", code)]


@pytest.mark.parametrize(("there", "here"), ROWS)
def test_every_key_exists(there: str, here: str) -> None:
    given = overrides(here)
    load(RECIPE, "lora_4b", given, "qvl_sft")
    assert given or "qvl-" in here or there.startswith(("`--video_min_pixels", '`"train"')), there


def test_no_flag_is_left_out() -> None:
    answered = " ".join(there for there, _ in ROWS)
    assert not [flag for flag in FLAGS.split() if f"--{flag}" not in answered]
    assert not [argument for argument in ARGUMENTS.split() if argument not in answered]
