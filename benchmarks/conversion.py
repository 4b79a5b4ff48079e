"""What it takes to convert a model that answers word by word to one that denoises: LoRA of which rank, or more.

    python benchmarks/conversion.py [--steps 600] [--seed 0] [--out FILE]

A tiny Qwen3-VL learns to say, in one of four phrasings, which digit a picture shows (the base of `qvl-mdlm demo`).
From there, each time anew: converted only; LoRA on all linear layers, of rank 16 and 64; full training with each
attention. The bound is in nats per answer of 16 tokens, of which ln 4 = 1.39 are the phrasing. An answer is right if
it is a phrasing, letter for letter, with the right digit; 360 test pictures, one token a pass, several at once by a
threshold, and in four passes.

Writes benchmarks/results/conversion.json; with --arms, these arms of it anew, if seed and steps are its own. About 80
CPU seconds for each arm at 600 steps.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arms import record
from transformers import AutoProcessor

from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.lora import load_adapter
from qvl_core.recipe.blocks import Model
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_mdlm.demo import CANVAS, FULL, REDUCED, Size, answers, nelbo, sentences, trained_base, write_data
from qvl_mdlm.model import Qwen3VLForMaskedLM, configured
from qvl_mdlm.recipe import RECIPE
from qvl_mdlm.sample import Sampling
from qvl_mdlm.train import train

RESULT = Path(__file__).parent / "results" / "conversion.json"
WORDS = {"embed": {"mode": "full"}, "lm_head": {"mode": "full"}}
FULLY = {"llm": {"mode": "full"}, **WORDS}


def lora(rank: int) -> dict[str, Any]:
    return {"llm": {"mode": "lora", "rank": rank, "alpha": 2 * rank, "lr": 2e-3}}


ARMS: dict[str, dict[str, Any]] = {
    "lora16_short": {"tune": lora(16), "steps": 1 / 3},
    "lora16": {"tune": lora(16)},
    "lora64_long": {"tune": lora(64), "steps": 1.5},
    "full_short": {"tune": FULLY, "steps": 1 / 3},
    "full": {"tune": FULLY},
    "full_prefix": {"tune": FULLY, "diffusion": {"attention": "prefix", "pad_to": CANVAS}},
    "full_block": {"tune": FULLY, "diffusion": {"attention": "block", "block_size": 4}},
}


def measure(folder: Path, seed: int, steps: int, arms: list[str]) -> dict[str, dict[str, float]]:
    """Figures of each arm."""
    write_data(folder / "data", seed)
    base = trained_base(folder, seed, Size())
    test = sentences("test", seed)
    found = {"converted_only": figures(Qwen3VLForMaskedLM.from_pretrained(base), base, test)}
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
        train(recipe, folder / name)
        found[name] = figures(opened(RunFolder(folder / name).final, base, recipe), base, test)
        print(name, found[name], flush=True)
    return found


def opened(final: Path, base: Path, recipe: Any) -> Any:
    """A trained model, its adapter beside its base."""
    if not (final / "adapter_config.json").is_file():
        return Qwen3VLForMaskedLM.from_pretrained(final)
    block = Model(name=str(base))
    model, _ = load_model(
        block, precision="fp32", device="cpu", configure=partial(configured, base=block, diffusion=recipe.diffusion)
    )
    load_adapter(model, final)
    return model


def figures(model: Any, base: Path, test: Any) -> dict[str, float]:
    """Right answers by schedule, forward passes per token, and the bound."""
    processor = AutoProcessor.from_pretrained(base)
    kinds = {"one_a_pass": FULL, "threshold": REDUCED, "four_passes": Sampling(max_new_tokens=CANVAS, steps=4)}
    found = {name: answers(model, processor, test, how) for name, how in kinds.items()}
    values = {name: one.accuracy for name, one in found.items()}
    return values | {
        "forwards_per_token": found["threshold"].forwards_per_token,
        "nelbo": nelbo(model, processor, test[:120]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--quick", action="store_true", help="two arms, 60 steps; nothing is written")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            print(json.dumps(measure(Path(folder), options.seed, 60, ["lora16", "full"]), indent=2))
            return
        found = measure(Path(folder), options.seed, options.steps, options.arms)
    rounded = {name: {key: round(value, 3) for key, value in arm.items()} for name, arm in found.items()}
    versions = record.versions("torch", "transformers", "peft")
    if options.out.is_file():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        if (before["seed"], before["steps"]) == (options.seed, options.steps):
            rounded = before["arms"] | rounded
    record.write(options.out, versions, seed=options.seed, steps=options.steps, arms=rounded)


if __name__ == "__main__":
    main()
