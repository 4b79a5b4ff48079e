"""`qvl-sft demo`: a tiny Qwen3-VL learns to read handwritten digits, then, with LoRA and replay, a new question.

    qvl-sft demo --out demo --seed 0

Everything is the real thing at a small size: the recipes `tiny` and `tiny_lora`, the training loop, evaluation by
generation on pictures that were never trained on, chat. One core, about two minutes, no internet.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qvl_core.demo import take_up
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder, result
from qvl_data.convert import write_samples
from qvl_data.example.digits import digits_dataset
from qvl_data.example.shuffled import shuffled
from qvl_data.sample import Sample
from qvl_sft.asking import Asking
from qvl_sft.chat import Chat
from qvl_sft.demo_report import Turn, write_report
from qvl_sft.evaluate import evaluate
from qvl_sft.recipe import RECIPE
from qvl_sft.train import train
from qvl_sft.trained import load_trained

DIGIT, PARITY = "Which digit is this?", "Is this digit odd or even?"
TEXTS = [*(f"{DIGIT} {digit}" for digit in range(10)), f"{PARITY} odd", f"{PARITY} even"]  # for the tokenizer
CHATS = 3  # held-out pictures that are talked about in the report


def demo(out: Path = Path("runs/demo"), seed: int = 0) -> dict[str, Any]:
    """Train, test and talk; leave report.html and result.json in `out`. Returns the result.

    An interrupted demo is continued by the same command, a finished one is left alone.
    """
    if (done := take_up("qvl-sft", out, seed)) is not None:
        return done
    run = RunFolder(out)
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and one core is what it needs

    write_data(out / "data", seed)
    if not (out / "base").is_dir():
        tiny(out / "base", TEXTS, seed)
    digits, parity = out / "runs" / "digits", out / "runs" / "parity"
    only_digits = [_set("data.train", out / "data/digits"), "data.validation=[]", "data.test=[]"]
    both = [_set(f"data.train.{index}.source", out / "data" / name) for index, name in enumerate(("parity", "digits"))]

    train(_recipe("tiny", seed, out / "base", *only_digits, "train.steps=300"), digits)
    figures = {
        "digit_accuracy": _accuracy(digits, out, "digits"),
        "shuffled_accuracy": _accuracy(digits, out, "shuffled"),
        "parity_accuracy_before": _accuracy(digits, out, "parity"),
    }
    train(_recipe("tiny_lora", seed, digits / "final", "data.test=[]", *both), parity)
    figures |= {
        "parity_accuracy": _accuracy(parity, out, "parity"),
        "digit_accuracy_after": _accuracy(parity, out, "digits"),
    }
    turns = talk(parity, seed)
    values = result("qvl-sft", seed=seed, complete=True, figures=figures)
    write_report(out, values, turns)
    run.write_result(values)
    print(*(f"{name} {value:.3f}" for name, value in figures.items()), run.report_file, sep="\n")
    return dict(values)


def write_data(folder: Path, seed: int) -> None:
    """Digits and parity with their splits, and the digit questions of the test split with shuffled pictures."""
    for name, kind in (("digits", "digit"), ("parity", "parity")):
        # Nothing is chosen on the validation pictures here, so they are trained on as well.
        trained = [*digits_dataset(kind, "train", seed), *digits_dataset(kind, "validation", seed)]
        _write(trained, folder / name / "train.parquet")
        _write(digits_dataset(kind, "test", seed), folder / name / "test.parquet")
    _write(shuffled(digits_dataset("digit", "test", seed), seed), folder / "shuffled" / "test.parquet")


def talk(model: Path, seed: int) -> list[Turn]:
    """Both questions about a few held-out pictures, each in a conversation of its own."""
    loaded, processor = load_trained(str(model))
    turns = []
    for sample in digits_dataset("digit", "test", seed)[:CHATS]:
        chat = Chat(loaded, processor)
        picture = sample.media[0].bytes
        assert picture is not None
        turns.append(Turn(picture, DIGIT, chat.ask(DIGIT, sample.media, max_new_tokens=4)))
        chat.reset()
        turns.append(Turn(picture, PARITY, chat.ask(PARITY, sample.media, max_new_tokens=4)))
    return turns


def _recipe(name: str, seed: int, model: Path, *overrides: str) -> Any:
    return load(RECIPE, name, [_set("model.name", model), f"train.seed={seed}", *overrides], "qvl_sft")


def _set(key: str, path: Path) -> str:
    return f"{key}={json.dumps(str(path))}"  # quoted: in YAML a path may mean something else


def _accuracy(model: Path, out: Path, data: str) -> float:
    """Exact match of the greedy answers on a test split."""
    folder = out / "evaluations" / f"{model.name}-on-{data}"
    figures = RunFolder(folder).read_result()  # of the demo that is being continued
    figures = figures or evaluate(str(model), [str(out / "data" / data)], folder, asking=Asking(max_new_tokens=4))
    return float(figures["test_exact_match"])


def _write(samples: Sequence[Sample], file: Path) -> None:
    if not file.is_file():
        write_samples(samples, file)
