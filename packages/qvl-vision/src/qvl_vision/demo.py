"""`qvl-vision demo`: a tiny Qwen3-VL gets another vision encoder and learns to read through it, in one stage or two.

    qvl-vision demo --out demo --seed 0

1. base      a tiny Qwen3-VL learns "Which digit is this?" with its own tower: its language model then knows the words
2. encoder   a tiny DINOv2 learns to tell digits apart by itself, and is frozen; a linear probe says what it knows
3. swap      the encoder takes the tower's place, behind a new linear merger with random weights
4. train     one stage: merger and LoRA at once; two stages: the merger alone, then both; and one stage at 2e-5

Real digits, real classes, core's loop. One core, about two and a half minutes, no internet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from qvl_core.demo import take_up
from qvl_core.qwen3vl.generate import exact_match
from qvl_core.qwen3vl.groups import GROUPS
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Model
from qvl_core.run import RunFolder, result
from qvl_data.convert import write_samples
from qvl_data.example.digits import digits_dataset, indices
from qvl_data.example.shuffled import shuffled
from qvl_data.sample import Sample
from qvl_vision.checkpoint import save
from qvl_vision.demo_encoder import pretrain, probe
from qvl_vision.demo_report import write_report
from qvl_vision.demo_training import accuracy, answers, recipe_of, train
from qvl_vision.swapping import swap

QUESTION = "Which digit is this?"
UNTRAINED = 5  # random mergers that are tried: one alone may be right by luck in a fifth of the pictures


@dataclass(frozen=True)
class Size:
    """How long each part is trained, and on how much it is tested."""

    base: int = 150  # steps
    encoder: int = 30  # epochs
    one: int = 140  # steps of the single stage
    align: int = 60  # steps of the first of two, and of the second
    two: int = 100
    test: int = 360  # held-out pictures that are asked about


def demo(out: Path = Path("runs/demo"), seed: int = 0, size: Size = Size()) -> dict[str, Any]:
    """Swap, train, test; leave report.html and result.json in `out`. Returns the result.

    An interrupted demo is continued by the same command, a finished one is left alone.
    """
    if (done := take_up("qvl-vision", out, seed)) is not None:
        return done
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and one core is what it needs
    test = digits_dataset("digit", "test", seed)[: size.test]
    trained = [*indices("train", seed), *indices("validation", seed)]
    write_data(out / "data", seed)

    base = train_base(out, test, seed, size)
    if not (encoder := out / "encoder").is_dir():
        pretrain(encoder, trained, seed, size.encoder)
    if not (swapped := out / "swapped").is_dir():
        save(*swap(base, str(encoder), "linear", seed=seed), swapped)
    figures = {
        "base_accuracy": accuracy(*load(base), test),
        "probe_accuracy": probe(load(swapped)[0].model.visual.encoder.model, trained, indices("test", seed)),
        "untrained_merger_accuracy": untrained(base, encoder, test, seed),
    }
    said: dict[str, list[str]] = {}  # answers of each trained model
    for name, folder in train_swapped(out, swapped, test, seed, size).items():
        model, processor = load(folder)
        said[name], references = answers(model, processor, test)
        figures[f"{name}_accuracy"] = exact_match(said[name], references)
        if name == "two_stage":
            figures["shuffled_accuracy"] = accuracy(model, processor, shuffled(test, seed))

    values = result("qvl-vision", seed=seed, complete=True, figures=figures)
    write_report(out, values, test, said)
    RunFolder(out).write_result(values)
    print(*(f"{name} {value:.3f}" for name, value in figures.items()), RunFolder(out).report_file, sep="\n")
    return dict(values)


def write_data(folder: Path, seed: int) -> None:
    """The questions about the digits that are trained on; nothing is chosen on the validation pictures."""
    if not (folder / "train.parquet").is_file():
        trained = [*digits_dataset("digit", "train", seed), *digits_dataset("digit", "validation", seed)]
        write_samples(trained, folder / "train.parquet")


def train_base(out: Path, test: Sequence[Sample], seed: int, size: Size) -> Path:
    """A tiny Qwen3-VL that reads digits with its own tower: the stock model of this demo."""
    if not (blank := out / "blank").is_dir():
        tiny(blank, [f"{QUESTION} {digit}" for digit in range(10)], seed)
    whole = {group: {"mode": "full"} for group in GROUPS}
    return train(recipe_of(blank, out / "data", whole, size.base, seed, lr=1.5e-3), out / "runs" / "base", test)


def untrained(base: Path, encoder: Path, test: Sequence[Sample], seed: int) -> float:
    """Mean accuracy behind mergers of random weights: the first is the one that is trained afterwards."""
    return fmean(accuracy(*swap(base, str(encoder), "linear", seed=seed + k), test) for k in range(UNTRAINED))


def train_swapped(out: Path, swapped: Path, test: Sequence[Sample], seed: int, size: Size) -> dict[str, Path]:
    """The swapped model trained in one stage, in two, and in one at a fine-tuning rate: folders by name."""

    def stage(name: str, model: Path, steps: int, merger: float, llm: float | None = None) -> Path:
        tune: dict[str, Any] = {"merger": {"mode": "full", "lr": merger}}
        if llm is not None:
            tune["llm"] = {"mode": "lora", "rank": 16, "alpha": 32, "lr": llm}
        return train(recipe_of(model, out / "data", tune, steps, seed), out / "runs" / name, test)

    aligned = stage("two_stage_merger", swapped, size.align, 2e-3)
    return {
        "one_stage": stage("one_stage", swapped, size.one, 1e-3, 1e-3),
        "two_stage": stage("two_stage", aligned, size.two, 5e-4, 1e-3),
        "low_rate": stage("low_rate", swapped, size.one, 2e-5, 2e-5),
    }


def load(folder: Path) -> tuple[Any, Any]:
    """A model of the demo, swapped or not, and its processor."""
    return load_model(Model(name=str(folder)), precision="fp32", device="cpu")
