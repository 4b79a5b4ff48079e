"""What it takes to convert a model that answers word by word to one that denoises: LoRA of which rank, or more.

    python benchmarks/conversion.py [--steps 600] [--seeds 0] [--arms NAME ...] [--out FILE]

A tiny Qwen3-VL learns to say, in one of four phrasings, which digit a picture shows (the base of `qvl-mdlm demo`).
From there, each time anew: converted only; LoRA on all linear layers, of rank 4, 8, 16 and 64, on those of attention
alone, and beside the mask token's row of the embedding; full training with each attention. The bound is in nats per
answer of 16 tokens, of which ln 4 = 1.39 are the phrasing. An answer is right if it is a phrasing, letter for letter,
with the right digit; 360 test pictures, one token a pass, several at once by a threshold, and in four passes.

Writes benchmarks/results/conversion.json, of several seeds the means and how far they lie apart; with --arms, these
arms of it anew, if seeds and steps are its own. About 80 CPU seconds for each arm and seed at 600 steps.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from arms import record
from transformers import AutoProcessor

from qvl_core.qwen3vl.groups import linear_targets
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_mdlm import open_masked
from qvl_mdlm.demo import CANVAS, FULL, REDUCED, Size, answers, ask, nelbo, sentences, trained_base, write_data
from qvl_mdlm.recipe import RECIPE
from qvl_mdlm.sampling import Sampling
from qvl_mdlm.train import train

RESULT = Path(__file__).parent / "results" / "conversion.json"
WORDS = {"embed": {"mode": "full"}, "lm_head": {"mode": "full"}}
FULLY = {"llm": {"mode": "full"}, **WORDS}


def lora(rank: int) -> dict[str, Any]:
    return {"llm": {"mode": "lora", "rank": rank, "alpha": 2 * rank, "lr": 2e-3}}


MASK_ROW = {"pad_to": CANVAS, "mask_row": True}
SHORT = {"steps": 1 / 3}
ARMS: dict[str, dict[str, Any]] = {
    "lora4_short": {"tune": lora(4), **SHORT},
    "lora4": {"tune": lora(4)},
    "lora8_short": {"tune": lora(8), **SHORT},
    "lora8": {"tune": lora(8)},
    "lora16_short": {"tune": lora(16), **SHORT},
    "lora16": {"tune": lora(16)},
    "lora16_attention_short": {"tune": lora(16), "attention_only": True, **SHORT},
    "lora16_attention": {"tune": lora(16), "attention_only": True},
    "lora16_mask_row_short": {"tune": lora(16), "diffusion": MASK_ROW, **SHORT},
    "lora16_mask_row": {"tune": lora(16), "diffusion": MASK_ROW},
    "lora64_long": {"tune": lora(64), "steps": 1.5},
    "full_short": {"tune": FULLY, **SHORT},
    "full": {"tune": FULLY},
    "full_prefix": {"tune": FULLY, "diffusion": {"attention": "prefix", "pad_to": CANVAS}},
    "full_block": {"tune": FULLY, "diffusion": {"attention": "block", "block_size": 4}},
}


def measure(folder: Path, seed: int, steps: int, arms: list[str]) -> dict[str, dict[str, float]]:
    """Figures of each arm."""
    write_data(folder / "data", seed)
    base = trained_base(folder, seed, Size())
    test = sentences("test", seed)
    found = {"converted_only": figures(open_masked(str(base), unconverted=True)[0], base, test)}
    for name in arms:
        arm = ARMS[name]
        settings = {
            "model.name": str(base),
            "tune": arm["tune"],
            "data": {"train": str(folder / "data")},
            "diffusion": arm.get("diffusion", {"pad_to": CANVAS}),
            "train": {"steps": round(steps * arm.get("steps", 1)), "seed": seed},
            "speed": {"cache_features": 0.1},
            "evaluate": {},
        }
        recipe = load(RECIPE, "tiny", [f"{key}={json.dumps(value)}" for key, value in settings.items()], "qvl_mdlm")
        with attention_only() if arm.get("attention_only") else nullcontext():
            train(recipe, folder / name)
        found[name] = figures(open_masked(str(RunFolder(folder / name).final))[0], base, test)
        print(name, found[name], flush=True)
    return found


@contextmanager
def attention_only() -> Iterator[None]:
    """LoRA on q, k, v and o alone, which recipes have no word for."""

    def targets(*arguments: Any) -> list[str]:
        return [name for name in linear_targets(*arguments) if ".self_attn." in name]

    with mock.patch("qvl_core.qwen3vl.lora.linear_targets", targets):
        yield


def figures(model: Any, base: Path, test: Any) -> dict[str, float]:
    """Right answers by schedule, forward passes per token, and the bound."""
    processor = AutoProcessor.from_pretrained(base)
    kinds = {"one_a_pass": FULL, "threshold": REDUCED, "four_passes": Sampling(max_new_tokens=CANVAS, steps=4)}
    asked = ask(model, processor, test)
    found = {name: answers(model, processor, asked, how) for name, how in kinds.items()}
    values = {name: one.accuracy for name, one in found.items()}
    return values | {
        "forwards_per_token": found["threshold"].forwards_per_token,
        "nelbo": nelbo(model, processor, test[:120]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--quick", action="store_true", help="60 steps, by default of two arms; nothing is written")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = 60 if options.quick else options.steps
    arms = ["lora16", "full"] if options.quick and options.arms == list(ARMS) else options.arms
    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder), seed, steps, arms))
    found = {name: together([run[name] for run in runs]) for name in runs[0]}
    if options.quick:
        print(json.dumps(found, indent=2))
        return
    if options.out.is_file():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        if (before["seeds"], before["steps"]) == (options.seeds, steps):
            found = before["arms"] | found
    record.write(
        options.out, record.versions("torch", "transformers", "peft"), seeds=options.seeds, steps=steps, arms=found
    )


def together(runs: list[dict[str, float]]) -> dict[str, float]:
    """Figures of an arm, means over seeds; `_apart` is how far the largest lies from the smallest."""
    found: dict[str, float] = {}
    for key in runs[0]:
        values = [run[key] for run in runs]
        found[key] = round(statistics.mean(values), 3)
        if len(values) > 1:
            found[f"{key}_apart"] = round(max(values) - min(values), 3)
    return found


if __name__ == "__main__":
    main()
