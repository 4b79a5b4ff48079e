"""The page of the demo: what was learned, shown on held-out pictures, and how to do the same to a real model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl_core.report import Block, Code, Curves, Figure, Figures, Picture, Pictures, Section, Table, Text, write
from qvl_core.run import RunFolder
from qvl_sft.plan import memory_table
from qvl_sft.prediction import Prediction, read_predictions
from qvl_sft.report import confusion

BARS = {"digit_accuracy": 0.96, "parity_accuracy": 0.95, "digit_accuracy_after": 0.95}
REAL = "lora_4b"
COMMAND = f"qvl-sft train {REAL} data.train=my_data.parquet --out runs/mine"
GRID = 21
LOSS_OF_NEW_WORDS = (
    "The loss stays near 2 although the answers are right: LoRA moves the hidden states, but the pieces of odd and "
    "even keep the random, frozen rows of the vocabulary that stage 1 never trained, so the right one is many times as "
    "likely as the next and still far from certain. A pretrained model knows its words and has no such floor."
)


@dataclass(frozen=True)
class Turn:
    """A question about a picture (PNG bytes), and what the model said."""

    picture: bytes
    question: str
    answer: str


def write_report(out: Path, values: dict[str, Any], turns: list[Turn]) -> Path:
    """Write out/report.html from the finished runs and evaluations below `out`."""
    runs, tests = out / "runs", out / "evaluations"
    sections = [
        Section("What it learned", [_figures(values), _explanation(values)]),
        Section("Before and after", [_before_after(out), *_confusions(tests)]),
        Section("A conversation", [_conversation(turns)]),
        Section("Stage 1: digits, every weight trained", _run(runs / "digits")),
        Section("Stage 2: a new question with LoRA and replay", [*_run(runs / "parity"), Text(LOSS_OF_NEW_WORDS)]),
        Section("The same with Qwen3-VL-4B", [Code(COMMAND, "one 24 GB card"), memory_table(REAL)]),
    ]
    lead = (
        f"A Qwen3-VL of 1.7 million parameters, built and trained on this machine in {values['seconds']:.0f} CPU "
        f"seconds (seed {values['seed']}). All figures are exact matches of generated answers on 360 pictures that "
        "were never trained on."
    )
    return write(RunFolder(out), sections, "qvl-sft demo: learning to read digits", lead)


def _figures(values: dict[str, Any]) -> Figures:
    return Figures(
        [
            Figure("digits", values["digit_accuracy"], BARS["digit_accuracy"], 0.1),
            Figure("odd or even", values["parity_accuracy"], BARS["parity_accuracy"], 0.5),
            Figure("digits, after the new task", values["digit_accuracy_after"], BARS["digit_accuracy_after"], 0.1),
            Figure("digits, pictures shuffled", values["shuffled_accuracy"], 0.2, 0.1, at_most=True),
        ]
    )


def _explanation(values: dict[str, Any]) -> Text:
    return Text(
        f"Before stage 2 the question odd or even was answered right in {values['parity_accuracy_before']:.0%} of the "
        "pictures: the model had never seen those words. Shuffled pictures are the control: with another sample's "
        "picture the answer must fall to chance, or the model would not be looking. Bars are for the mean over five "
        "seeds; a single seed may lie 0.02 below."
    )


def _before_after(out: Path) -> Pictures:
    """Held-out pictures with what the model said to both questions, before stage 2 and after it."""
    tests = out / "evaluations"
    before = [_by_picture(tests / f"digits-on-{data}") for data in ("digits", "parity")]
    after = [_by_picture(tests / f"parity-on-{data}") for data in ("digits", "parity")]
    cells = []
    for key in list(after[0])[:GRID]:
        old, new = [part[key] for part in before], [part[key] for part in after]
        caption = f"before: {_said(old)}\nafter: {_said(new)}"
        picture = (tests / "parity-on-digits" / str(new[0].picture)).read_bytes()
        cells.append(Picture(picture, caption, "good" if all(p.correct for p in new) else "bad"))
    note = "Digit, then odd or even. The frame tells whether both answers after stage 2 are right."
    return Pictures(cells, "Held-out pictures", width=140, note=note)


def _by_picture(folder: Path) -> dict[str, Prediction]:
    """Predictions whose picture was kept, by the number of the digit."""
    return {p.id.rpartition("-")[2]: p for p in read_predictions(folder) if p.picture is not None}


def _said(predictions: list[Prediction]) -> str:
    return ", ".join(p.answer.strip() or "–" for p in predictions)


def _confusions(tests: Path) -> list[Block]:
    titles = {"digits-on-digits": "Digits after stage 1", "parity-on-digits": "Digits after stage 2",
              "parity-on-parity": "Odd or even after stage 2"}  # fmt: skip
    matrices = [confusion(read_predictions(tests / name), title) for name, title in titles.items()]
    return [matrix for matrix in matrices if matrix is not None]


def _conversation(turns: list[Turn]) -> Pictures:
    return Pictures([Picture(turn.picture, f"{turn.question}\n{turn.answer.strip()}") for turn in turns], width=150)


def _run(path: Path) -> list[Block]:
    """A run's loss curve, tune table and command."""
    run = RunFolder(path)
    steps = [record for record in run.read_metrics() if "loss" in record]
    tune = run.read_environment().get("tune", [])
    return [
        Curves("Loss", {"training": [(record["step"], record["loss"]) for record in steps]}),
        Curves("Learning rate", {"lr": [(record["step"], record["lr"]) for record in steps]}, smooth=False),
        Table([{key: value for key, value in row.items() if value is not None} for row in tune], "What was trained"),
    ]
