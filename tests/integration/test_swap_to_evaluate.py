"""Another vision encoder from the first command to the last: swap, verify, train, merge, reload elsewhere, evaluate.

Every step is a command, as a user types it, in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qvl_core.qwen3vl.tiny import tiny
from qvl_core.run import RunFolder
from qvl_data.convert import write_samples
from qvl_data.example.digits import digits_dataset
from qvl_sft.trained import load_trained
from qvl_vision.tiny import tiny_encoder

RECIPE = """
version: 1
model: {name: swapped}
tune:
  llm:    {mode: lora, rank: 8, alpha: 16, lr: 2e-3}
  merger: {mode: full, lr: 3e-3}
data: {train: data, test: data}
batch: {size: 8, max_length: 128}
train: {steps: 20}
log: {every: 1}
evaluate: {max_new_tokens: 4}
"""
# What anyone does with the merged folder: transformers' own classes, after one import that makes the model known.
RELOAD = """
import sys
import qvl_vision.model
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, picture, file = sys.argv[1:]
model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "Which digit is this?"}]
asked = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True,
                                      return_dict=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**asked).logits
save_file({"logits": logits, **asked}, file)
"""

pytestmark = pytest.mark.slow  # six commands, each of which loads torch


def run(folder: Path, *command: str) -> str:
    """Run a command of this environment in `folder`, and give what it printed."""
    programs = Path(sys.executable).parent
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(programs / command[0]), *command[1:]], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a stock model, an encoder, digits, a picture and a recipe."""
    tiny(tmp_path / "stock")
    tiny_encoder(tmp_path / "encoder")
    for split, number in (("train", 200), ("test", 24)):
        write_samples(digits_dataset("digit", split)[:number], tmp_path / f"data/{split}.parquet")
    (tmp_path / "digit.png").write_bytes(digits_dataset("digit", "test")[0].media[0].bytes or b"")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def test_swap_train_merge_reload_evaluate(place: Path) -> None:
    run(place, "qvl-vision", "swap", "stock", "--encoder", "./encoder", "--out", "swapped", "--precision", "fp32")
    run(place, "qvl-vision", "verify", "swapped")
    run(place, "qvl-sft", "train", "recipe.yaml", "--out", "run")
    run(place, "qvl-sft", "merge", "run", "--out", "merged", "--dtype", "fp32")

    run(place, "python", "-c", RELOAD, "merged", "digit.png", "reloaded.safetensors")
    there = load_file(place / "reloaded.safetensors")
    asked = {name: value for name, value in there.items() if name != "logits"}
    for model, tolerance in (("merged", 0.0), ("run", 1e-5)):
        here, _ = load_trained(str(place / model))
        here.set_attn_implementation("sdpa")
        with torch.no_grad():
            found = here(**asked).logits
        assert (found - there["logits"]).abs().max() <= tolerance * found.abs().max(), model

    run(place, "qvl-sft", "evaluate", "merged", "data", "--out", "evaluation", "--max-new-tokens", "4")
    trained, evaluated = (RunFolder(place / name).read_result() or {} for name in ("run", "evaluation"))
    assert evaluated["test_loss"] == pytest.approx(trained["test_loss"], rel=1e-4)
    assert evaluated["test_exact_match"] == trained["test_exact_match"]
    losses = [record["loss"] for record in RunFolder(place / "run").read_metrics() if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]
