"""`qvl-mdlm demo`: a tiny Qwen3-VL that answers word by word is converted to one that answers by denoising.

    qvl-mdlm demo --out demo --seed 0

1. base     a tiny Qwen3-VL learns, autoregressively, to say which digit a picture shows, in one of four phrasings
2. convert  the same weights see both ways and are trained to fill in masks; the tower stays as it is
3. test     on held-out pictures: one token a step, several at once, shuffled pictures; and the base beside it

Real digits, the shipped recipe `tiny`, the common loop. One core, about three minutes, no internet.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qvl_core.demo import judged, take_up
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.generate import generate
from qvl_core.qwen3vl.groups import GROUPS
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.seen import Seen, look
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Model
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder, Scalar, result
from qvl_data.chat import encode, prompt
from qvl_data.convert import write_samples
from qvl_data.example.digits import digits_dataset
from qvl_data.example.shuffled import shuffled
from qvl_data.order import mix
from qvl_data.sample import Message, Part, Sample
from qvl_mdlm.batch import collation
from qvl_mdlm.demo_report import BARS, write_report
from qvl_mdlm.layout import shape_of
from qvl_mdlm.likelihood import bound
from qvl_mdlm.model import Qwen3VLForMaskedLM
from qvl_mdlm.recipe import RECIPE
from qvl_mdlm.sample import Step, Writer, Written
from qvl_mdlm.sample import sample as write
from qvl_mdlm.sampling import Sampling
from qvl_mdlm.train import train
from qvl_vision.demo_training import recipe_of
from qvl_vision.demo_training import train as train_base

QUESTION = "Which digit is this?"
PHRASINGS = (
    "It is a {}.",
    "The digit is {}.",
    "I can see the digit {} in this picture.",
    "This picture shows the digit {}, written by hand.",
)
CANVAS = 16  # tokens
FULL = Sampling(max_new_tokens=CANVAS)
REDUCED = Sampling(max_new_tokens=CANVAS, threshold=0.8, eos_guard=True)
SCHEDULES = {
    **{f"{steps} steps": Sampling(max_new_tokens=CANVAS, steps=steps) for steps in (8, 4, 2, 1)},
    **{f"threshold {p}": Sampling(max_new_tokens=CANVAS, threshold=p, eos_guard=True) for p in (0.95, 0.5)},
}
SOME = 120  # of the held-out pictures, for the likelihood and for the schedules that are only shown
ROWS = 64  # prompts that are answered together
STRIPS = 3  # pictures whose canvases are shown step by step


@dataclass(frozen=True)
class Size:
    """How long each part is trained, and on how much it is tested."""

    base: int = 300  # steps
    masked: int = 450
    test: int = 360  # held-out pictures


@dataclass(frozen=True)
class Asked:
    """Questions that are answered by several schedules: encoded once, their pictures seen once.

    seconds  of a processor, of seeing all pictures
    """

    samples: Sequence[Sample]
    questions: Sequence[Encoded]
    seen: Sequence[Seen]
    seconds: float

    def first(self, count: int) -> "Asked":
        seconds = self.seconds * min(1.0, count / len(self.samples))
        return Asked(self.samples[:count], self.questions[:count], self.seen[:count], seconds)


@dataclass(frozen=True)
class Answers:
    """What came of one schedule, or of the base (`forwards` then is one for each token)."""

    texts: list[str]
    accuracy: float
    forwards_per_token: float
    tokens_per_second: float


def demo(out: Path = Path("runs/demo"), seed: int = 0, size: Size = Size()) -> dict[str, Any]:
    """Convert, train, test; leave report.html and result.json in `out`. Returns the result.

    An interrupted demo is continued by the same command, a finished one is left alone.
    """
    if (done := take_up("qvl-mdlm", out, seed)) is not None:
        return done
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and one core is what it needs
    test = sentences("test", seed)[: size.test]
    write_data(out / "data", seed)
    base = trained_base(out, seed, size)
    masked = trained_masked(out, base, seed, size)

    model, processor = load_model(Model(name=str(base)), precision="fp32", device="cpu")
    spoken = answers_of_base(model, processor, test)
    before = Qwen3VLForMaskedLM.from_pretrained(base)
    model = Qwen3VLForMaskedLM.from_pretrained(masked)
    asked = ask(model, processor, test)
    found = {name: answers(model, processor, asked, how) for name, how in {"full": FULL, "reduced": REDUCED}.items()}
    found |= {name: answers(model, processor, asked.first(SOME), how) for name, how in SCHEDULES.items()}
    blind = answers(model, processor, ask(model, processor, shuffled(test, seed)), REDUCED)
    exact, full = found["reduced"].accuracy, found["full"].accuracy
    untrained, trained = (nelbo(one, processor, test[:SOME]) for one in (before, model))
    figures: dict[str, Scalar] = {
        "exact_accuracy": exact,
        "full_schedule_accuracy": full,
        "schedule_difference": abs(full - exact),
        "shuffled_accuracy": blind.accuracy,
        "forwards_per_token": found["reduced"].forwards_per_token,
        "nelbo_before": untrained,
        "nelbo_after": trained,
        "nelbo_ratio": trained / untrained,
        "base_accuracy": spoken.accuracy,
        "tokens_per_second": found["reduced"].tokens_per_second,
        "base_tokens_per_second": spoken.tokens_per_second,
    }
    strips = film(model, processor, test[:STRIPS])
    values = result("qvl-mdlm", seed=seed, complete=True, figures=figures)
    values |= judged(values, BARS)
    write_report(out, values, processor, test, found, spoken, strips)
    RunFolder(out).write_result(values)
    print(*(f"{name} {value:.3f}" for name, value in figures.items()), sep="\n")
    print(f"missed {values['missed'] or 'no bar'}", RunFolder(out).report_file, sep="\n")
    return dict(values)


def sentences(split: Any, seed: int) -> list[Sample]:
    """The question about each digit of a split, answered in one of the phrasings at random."""
    samples = []
    for place, sample in enumerate(digits_dataset("digit", split, seed)):
        text = PHRASINGS[mix(seed, place) % len(PHRASINGS)].format(digit_of(sample))
        answer = Message(role="assistant", parts=(Part(type="text", text=text),))
        samples.append(sample.model_copy(update={"messages": (*sample.messages[:-1], answer)}))
    return samples


def digit_of(sample: Sample) -> str:
    """The digit in a sample's answer."""
    return next(letter for letter in sample.messages[-1].text if letter.isdigit())


def is_right(text: str, sample: Sample) -> bool:
    """Whether a text is one of the phrasings, letter for letter, with the right digit."""
    return text in [phrasing.format(digit_of(sample)) for phrasing in PHRASINGS]


def write_data(folder: Path, seed: int) -> None:
    """The sentences that are trained on; nothing is chosen on the validation pictures."""
    if not (folder / "train.parquet").is_file():
        write_samples([*sentences("train", seed), *sentences("validation", seed)], folder / "train.parquet")


def trained_base(out: Path, seed: int, size: Size) -> Path:
    """A tiny Qwen3-VL that answers word by word."""
    if not (blank := out / "blank").is_dir():
        words = [f"{QUESTION} {phrasing.format(digit)}" for phrasing in PHRASINGS for digit in range(10)]
        tiny(blank, words, seed)
    whole = {group: {"mode": "full"} for group in GROUPS}
    recipe = recipe_of(blank, out / "data", whole, size.base, seed, lr=1.5e-3)
    return train_base(recipe, out / "runs" / "base", [], "qvl-mdlm")


def trained_masked(out: Path, base: Path, seed: int, size: Size) -> Path:
    """The base as a masked diffusion model: the language model and its words trained, the tower's features kept."""
    changes = [
        f"model.name={json.dumps(str(base))}",
        "tune={llm: {mode: full}, embed: {mode: full}, lm_head: {mode: full}}",
        f"data={{train: {json.dumps(str(out / 'data'))}}}",
        f"train={{steps: {size.masked}, seed: {seed}}}",
        "speed.cache_features=0.1",
        f"diffusion.pad_to={CANVAS}",
        "evaluate.every=null",
    ]
    run = out / "runs" / "masked"
    train(load(RECIPE, "tiny", changes, "qvl_mdlm"), run)
    return RunFolder(run).final


def ask(model: Any, processor: Any, samples: Sequence[Sample]) -> Asked:
    """The samples' questions, and what the model's tower gives for their pictures."""
    questions = [prompt(sample, processor)[0] for sample in samples]
    start = time.process_time()
    seen = look(model, questions)
    return Asked(samples, questions, seen, time.process_time() - start)


def answers(model: Any, processor: Any, asked: Asked, how: Sampling) -> Answers:
    """Write answers; their tokens per second are by the time of writing and of seeing."""
    written: list[Written] = []
    start = time.process_time()
    for first in range(0, len(asked.questions), ROWS):
        rows = slice(first, first + ROWS)
        written += write(model, processor, asked.questions[rows], how, seen=asked.seen[rows])
    seconds = time.process_time() - start + asked.seconds
    return Answers(
        [one.text for one in written],
        sum(is_right(one.text, sample) for one, sample in zip(written, asked.samples, strict=True)) / len(written),
        sum(one.forwards / one.tokens for one in written) / len(written),
        sum(one.tokens for one in written) / seconds,
    )


def answers_of_base(model: Any, processor: Any, samples: Sequence[Sample]) -> Answers:
    """The base's greedy answers, from its key-value cache: one forward pass for each token."""
    questions = [prompt(sample, processor)[0] for sample in samples]
    start = time.process_time()
    texts = [text.strip() for text in generate(model, processor, questions, CANVAS, batch_size=ROWS)]
    seconds = time.process_time() - start
    tokens = sum(len(processor.tokenizer(text)["input_ids"]) + 1 for text in texts)  # and the end token
    right = sum(is_right(text, sample) for text, sample in zip(texts, samples, strict=True))
    return Answers(texts, right / len(samples), 1.0, tokens / seconds)


def nelbo(model: Any, processor: Any, samples: Sequence[Sample]) -> float:
    """Nats per answer, with what fills its canvas."""
    shape = shape_of(model.config, processor.tokenizer, CANVAS)
    encoded = [encode(sample, processor) for sample in samples]
    patterned = model.config.pattern != "full"
    return bound(model, encoded, shape, collation(processor, True, patterned), draws=8).mean


def film(model: Any, processor: Any, samples: Sequence[Sample]) -> list[list[Step]]:
    """Every step of a few canvases, one after the other."""
    return [list(Writer(model, processor, [prompt(sample, processor)[0]], REDUCED).steps()) for sample in samples]
