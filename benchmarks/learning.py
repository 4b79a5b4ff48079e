"""What LoRA teaches a model on each module group, and what it forgets, on handwritten digits it was never trained on.

    python benchmarks/learning.py [--seeds 0 1 2 3 4] [--out FILE]

A tiny Qwen3-VL learns to read digits (the recipe `tiny`). From there, each time anew:

- llm, merger, vision: LoRA on that group alone learns to read digits that are mirrored. The control is the same model
  on mirrored pictures dealt out anew among the questions, where chance is 0.10.
- replay, no_replay: LoRA on the language model learns to say whether a digit is odd or even, with one old sample to two
  new ones, and without. `digits` is what is left of reading.

Accuracies are exact match of greedy answers on 360 test pictures. Writes benchmarks/results/learning.json: each seed's,
and their means. About 200 CPU seconds a seed.
"""

import argparse
import io
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arms import record
from PIL import Image, ImageOps

from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.load import load
from qvl_data.convert import write_samples
from qvl_data.example.digits import digits_dataset
from qvl_data.example.shuffled import shuffled
from qvl_data.sample import Media, Sample
from qvl_sft import train
from qvl_sft.asking import Asking
from qvl_sft.demo import TEXTS
from qvl_sft.evaluate import evaluate
from qvl_sft.recipe import RECIPE

RESULT = Path(__file__).parent / "results" / "learning.json"
GROUPS = {"llm": 4e-3, "merger": 4e-3, "vision": 3e-3}  # learning rate of LoRA on each
LORA = {"mode": "lora", "rank": 32, "alpha": 64}


def measure(folder: Path, seed: int) -> dict[str, float]:
    """All accuracies of one seed."""
    write_data(folder, seed)
    tiny(folder / "base", TEXTS, seed)
    reader = folder / "reader"
    fit(folder / "base", ["digits"], {"train.steps": 250}, seed, reader)
    found = {f"base_{name}": accuracy(reader, folder / name) for name in ("digits", "mirrored", "parity")}
    for group, lr in GROUPS.items():
        adapted = folder / group
        fit(reader / "final", ["mirrored"], {"tune": {group: LORA}, "train.steps": 200, "optim.lr": lr}, seed, adapted)
        found |= {f"{group}_{name}": accuracy(adapted, folder / name) for name in ("mirrored", "shuffled")}
    for name, sources in {"replay": ["parity", "parity", "digits"], "no_replay": ["parity"]}.items():
        adapted = folder / name
        fit(reader / "final", sources, {"tune": {"llm": LORA}, "train.steps": 200, "optim.lr": 3e-3}, seed, adapted)
        found |= {f"{name}_{data}": accuracy(adapted, folder / data) for data in ("parity", "digits")}
    return found


def fit(base: Path, sources: Sequence[str], settings: dict[str, Any], seed: int, out: Path) -> None:
    """Train `base` on data sets beside `out`, by the recipe `tiny` with these settings."""
    settings = settings | {
        "model.name": str(base),
        "train.seed": seed,
        "data": {"train": [{"source": str(out.parent / source)} for source in sources]},
        "evaluate": {},
    }
    train(load(RECIPE, "tiny", [f"{key}={json.dumps(value)}" for key, value in settings.items()], "qvl_sft"), out)


def accuracy(model: Path, data: Path) -> float:
    return float(
        evaluate(str(model), [str(data)], model / f"on-{data.name}", asking=Asking(max_new_tokens=4))[
            "test_exact_match"
        ]
    )


def write_data(folder: Path, seed: int) -> None:
    """Digits as they are and mirrored, parity, and mirrored digits dealt out anew (test alone)."""
    for split in ("train", "test"):
        plain = digits_dataset("digit", split, seed)
        flipped = [mirrored(sample) for sample in plain]
        write_samples(plain, folder / "digits" / f"{split}.parquet")
        write_samples(flipped, folder / "mirrored" / f"{split}.parquet")
        write_samples(digits_dataset("parity", split, seed), folder / "parity" / f"{split}.parquet")
    write_samples(shuffled(flipped, seed), folder / "shuffled" / "test.parquet")


def mirrored(sample: Sample) -> Sample:
    """The sample with its picture mirrored left to right."""
    picture = ImageOps.mirror(Image.open(io.BytesIO(sample.media[0].bytes or b"")))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return sample.model_copy(update={"media": (Media(kind="image", bytes=data.getvalue()),)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            seeds[seed] = {name: round(value, 3) for name, value in measure(Path(folder), seed).items()}
        print(seed, seeds[seed], flush=True)
    names = seeds[options.seeds[0]]
    mean = {name: round(statistics.mean(found[name] for found in seeds.values()), 3) for name in names}
    record.write(options.out, record.versions("torch", "transformers", "peft"), mean=mean, seeds=seeds)


if __name__ == "__main__":
    main()
