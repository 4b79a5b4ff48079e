"""The page of the demo: what was swapped, what it learned in one stage and in two, what the encoder sees, what to do
with a real model."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from qvl_core.qwen3vl.generate import exact_match
from qvl_core.qwen3vl.load import open_processor
from qvl_core.recipe.blocks import Model
from qvl_core.report import (
    Block,
    Code,
    Curves,
    Figure,
    Figures,
    Matrix,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    write,
)
from qvl_core.run import RunFolder
from qvl_data.example.digits import SIDE, arrays, digit_png, indices
from qvl_data.sample import Sample
from qvl_vision.checkpoint import load
from qvl_vision.demo_encoder import digits, patch_tokens
from qvl_vision.inspecting import inspect
from qvl_vision.plan import predict
from qvl_vision.verifying import checks

BELOW = 0.03  # of the probe: how far what the language model learns may stay behind
CHANCE, AT_MOST = 0.1, 0.2
GRID = 18
TWO = ["two_stage_merger", "two_stage"]
EXAMPLES, GAP = 3, 4  # of each digit in the pictures of tokens, and pixels between them
REAL = "Qwen/Qwen3-VL-4B-Instruct"
COMMANDS = f"""\
# What it would be, without the weights; then the folder, and whether it is right
qvl-vision plan {REAL} --encoder rad_dino
qvl-vision swap {REAL} --encoder rad_dino --out qwen3vl-4b-rad-dino
qvl-vision verify qwen3vl-4b-rad-dino

# Or swap and train at once; mimic_4b_rad_dino_two_stage trains the merger alone first
qvl-sft train mimic_4b_rad_dino data.train=train.jsonl data.validation=validation.jsonl data.test=test.jsonl"""


def write_report(out: Path, values: dict[str, Any], test: Sequence[Sample], said: Mapping[str, list[str]]) -> Path:
    """Write out/report.html from the runs below `out` and the answers of the trained models on the test pictures."""
    sections = [
        Section("What it learned", [_figures(values), Text(_learned(values))]),
        Section("What was swapped", _swapped(out)),
        Section("One stage or two", _stages(out / "runs", values)),
        Section("Held-out pictures", _held_out(test, said)),
        Section("What the encoder sees", [_tokens(out)], lead=_TOKENS),
        Section("The same with Qwen3-VL-4B and RAD-DINO", _real()),
    ]
    lead = (
        f"A tiny Qwen3-VL lost its vision tower, got a DINOv2 that it had never seen, and learned to read through it: "
        f"{values['seconds']:.0f} CPU seconds on this machine (seed {values['seed']}). All figures are of 360 pictures "
        "that nothing was trained on."
    )
    return write(RunFolder(out), sections, "qvl-vision demo: new eyes for Qwen3-VL", lead)


def _figures(values: Mapping[str, Any]) -> Figures:
    bar = round(values["probe_accuracy"] - BELOW, 3)
    return Figures(
        [
            Figure("linear probe of the encoder alone", values["probe_accuracy"], chance=CHANCE),
            Figure("swapped, one stage", values["one_stage_accuracy"], bar, CHANCE),
            Figure("swapped, two stages", values["two_stage_accuracy"], bar, CHANCE),
            Figure("merger untrained", values["untrained_merger_accuracy"], AT_MOST, CHANCE, at_most=True),
            Figure("pictures shuffled", values["shuffled_accuracy"], AT_MOST, CHANCE, at_most=True),
        ]
    )


def _learned(values: Mapping[str, Any]) -> str:
    return (
        "The probe is a logistic regression on the frozen encoder's patch tokens: it says what the encoder knows, and "
        f"so what a merger can bring across. The bar is {BELOW:g} below it. The language model knew the question and "
        f"the ten answers from its own tower ({values['base_accuracy']:.1%}); of the new encoder it knew nothing, and "
        "with a random merger it answers at chance (mean of five mergers). Shuffled pictures are the control: asked "
        "about another picture, a model that looks must be wrong."
    )


def _swapped(out: Path) -> list[Block]:
    trained = out / "runs" / "two_stage" / "final"
    model, processor = load(trained)
    found = inspect(model, processor)
    encoder = found.encoders[0]
    facts = {
        "encoder": f"{encoder['name']}, {encoder['width']} wide, patches of {encoder['patch']} x {encoder['patch']} "
        f"pixels, {encoder['prefix']} prefix token",
        "merger": found.merger,
        "layout": f"{found.layout}: {found.token}",
        "DeepStack": ", ".join(map(str, found.deepstack)) or "off",
        "tokens of a picture": f"{_tokens_of(processor)}, where the stock model has {_tokens_of(_processor(out))}",
    }
    tune = RunFolder(out / "runs" / "base").read_environment()["tune"]
    before = {row["group"]: row["parameters"] for row in tune}
    groups = [
        {"group": group, "stock": before.get(group), "swapped": found.parameters.get(group)}
        for group in before
        if before[group] or group in found.parameters
    ]
    proof = [{"check": check.name, "found": check.found, "holds": check.ok} for check in checks(trained)]
    return [
        Table([{"": name, "what it is": value} for name, value in facts.items()]),
        Table(groups, "Parameters", note="The language model is the same, to the last weight, until it is trained."),
        Table(proof, "What qvl-vision verify finds in the trained model"),
        Code(f"qvl-vision inspect {trained}\nqvl-vision verify {trained}", "Look for yourself"),
    ]


def _processor(out: Path) -> Any:
    return open_processor(Model(name=str(out / "runs" / "base" / "final")))


def _tokens_of(processor: Any) -> int:
    images = processor.image_processor
    return int(images.get_number_of_image_patches(SIDE, SIDE, {}) // images.merge_size**2)


def _stages(runs: Path, values: Mapping[str, Any]) -> list[Block]:
    names = {"one stage": ["one_stage"], "two stages": TWO, "one stage at 2e-5": ["low_rate"]}
    loss = {name: _series(runs, parts, "loss") for name, parts in names.items()}
    right = {name: _series(runs, parts, "held_out_accuracy") for name, parts in names.items()}
    found = {name.removesuffix("_accuracy"): f"{value:.3f}" for name, value in values.items() if "accuracy" in name}
    rows = [
        {"recipe": "linear probe of the encoder", "accuracy": found["probe"], "trained": "no language model"},
        {"recipe": "one stage", "accuracy": found["one_stage"], "trained": _trained(runs, ["one_stage"])},
        {"recipe": "two stages", "accuracy": found["two_stage"], "trained": _trained(runs, TWO)},
        {"recipe": "one stage at 2e-5", "accuracy": found["low_rate"], "trained": _trained(runs, ["low_rate"])},
        {"recipe": "two stages, pictures shuffled", "accuracy": found["shuffled"], "trained": "the same model"},
        {"recipe": "merger untrained", "accuracy": found["untrained_merger"], "trained": "nothing"},
        {
            "recipe": "the stock model with its own tower",
            "accuracy": found["base"],
            "trained": _trained(runs, ["base"]),
        },
    ]
    return [
        Curves("Accuracy on held-out pictures", right, smooth=False),
        Curves("Loss", loss),
        Table(
            rows,
            note="Held-out accuracy, exact match of generated answers. The curve takes 120 of the 360 pictures; "
            "nothing is chosen by it.",
        ),
        Text(_RATES.format(low=values["low_rate_accuracy"]), tone="note"),
    ]


_RATES = (
    "One stage or two makes little difference here; with 360 pictures, 0.01 says nothing. The rate does: at 2e-5, "
    "which suits a merger that has been trained before, a random one ends at {low:.1%} after as many steps as at 1e-3."
)


def _series(runs: Path, parts: Sequence[str], key: str) -> list[tuple[float, float | None]]:
    """One figure over the steps of runs that follow one another."""
    points: list[tuple[float, float | None]] = []
    done = 0
    for name in parts:
        found = {record["step"]: record[key] for record in RunFolder(runs / name).read_metrics() if key in record}
        points += [(done + step, value) for step, value in found.items()]
        done += max(found, default=0)
    return points


def _trained(runs: Path, parts: Sequence[str]) -> str:
    """What runs that follow one another trained, at which rates, for how long."""
    stages = []
    for name in parts:
        run = RunFolder(runs / name)
        tune = [row for row in run.read_environment()["tune"] if row["trainable"]]
        rates = {row["lr"] for row in tune}
        if len(tune) > 2 and len(rates) == 1:
            what = f"every weight at {_rate(rates.pop())}"
        else:
            what = " and ".join(f"{_NAMES[row['group']]} at {_rate(row['lr'])}" for row in reversed(tune))
        stages.append(f"{(run.read_result() or {})['steps']} steps: {what}")
    return "\nthen ".join(stages)


def _rate(lr: float) -> str:
    """0.0015 as 1.5e-3."""
    return f"{lr:.1e}".replace(".0e", "e").replace("e-0", "e-")


_NAMES = {"llm": "LoRA on the language model", "merger": "merger"}


def _held_out(test: Sequence[Sample], said: Mapping[str, list[str]]) -> list[Block]:
    references = [sample.messages[-1].text for sample in test]
    cells = []
    for number, reference in _instructive(references, said)[:GRID]:
        one, two = said["one_stage"][number], said["two_stage"][number]
        right = one == two == reference
        caption = reference if right else f"{reference}\none: {one}, two: {two}"
        picture = test[number].media[0].bytes
        assert picture is not None
        cells.append(Picture(picture, caption, "good" if right else "bad"))
    shown = Pictures(
        cells, width=96, note="First the pictures that one of the two models got wrong, with both answers."
    )
    titles = {"one_stage": "One stage", "two_stage": "Two stages"}
    return [shown, *(_confusion(references, said[name], title) for name, title in titles.items())]


def _instructive(references: Sequence[str], said: Mapping[str, list[str]]) -> list[tuple[int, str]]:
    """Mistakes first, at most half of what is shown, then the others in their order."""
    numbered = list(enumerate(references))
    wrong = [pair for pair in numbered if {said["one_stage"][pair[0]], said["two_stage"][pair[0]]} != {pair[1]}]
    wrong = wrong[: GRID // 2]
    return [
        *wrong,
        *(pair for pair in numbered if {said["one_stage"][pair[0]], said["two_stage"][pair[0]]} == {pair[1]}),
    ]


def _confusion(references: Sequence[str], answers: Sequence[str], title: str) -> Matrix:
    labels = [str(digit) for digit in range(10)]
    columns = [*labels, "other"] if set(answers) - set(labels) else labels
    pairs = [(ref, answer if answer in labels else "other") for ref, answer in zip(references, answers, strict=True)]
    counts = [[pairs.count((ref, answer)) for answer in columns] for ref in labels]
    return Matrix(labels, counts, f"{title}: {exact_match(answers, references):.3f}", columns=columns)


_TOKENS = (
    "Each square is one patch token of the frozen encoder, 48 numbers shown as a colour: their first three principal "
    "components over these pictures. Tokens of the same digit have the same colours although the pictures differ, and "
    "this is all that the language model gets to see of them."
)


def _tokens(out: Path) -> Pictures:
    """Digits beside their patch tokens in colours, one cell for each digit, EXAMPLES one below the other."""
    seed = (RunFolder(out).read_result() or {})["seed"]
    labels, test = arrays()[1], indices("test", seed)
    chosen = [[number for number in test if labels[number] == digit][:EXAMPLES] for digit in range(10)]
    flat = [number for numbers in chosen for number in numbers]
    model = load(out / "swapped")[0].model.visual.encoder.model
    with torch.no_grad():
        tokens = patch_tokens(model, digits(flat)[0]).numpy()  # (B, N, D)
    coloured = iter(_colours(tokens))
    cells = []
    for digit, numbers in enumerate(chosen):
        pairs = [np.concatenate([_opened(digit_png(number)), next(coloured)], 1) for number in numbers]
        apart = np.pad(np.stack(pairs), ((0, 0), (0, GAP), (0, 0), (0, 0)), constant_values=255)
        cells.append(Picture(_png(np.concatenate(list(apart), 0)[:-GAP]), str(digit)))
    return Pictures(cells, width=172)


def _colours(tokens: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Tokens (B, N, D) as pictures of squares (B, SIDE, SIDE, 3): three principal components as red, green and blue."""
    b, n, d = tokens.shape
    flat = tokens.reshape(-1, d) - tokens.reshape(-1, d).mean(0)
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    seen = flat @ axes[:3].T  # (B * N, 3)
    low, high = np.quantile(seen, [0.02, 0.98], axis=0)
    scaled = np.clip((seen - low) / (high - low), 0, 1) * 215 + 40
    side = round(n**0.5)
    squares = scaled.reshape(b, side, side, 3).astype(np.uint8)
    return squares.repeat(SIDE // side, 1).repeat(SIDE // side, 2)


def _opened(picture: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _real() -> list[Block]:
    plan = predict(REAL, ["rad_dino"])
    groups = [
        {"group": group, "stock": plan.before[group], "swapped": count}
        for group, count in plan.after.items()
        if count or plan.before[group]
    ]
    note = f"Counted from the real shapes, without the weights. A picture has at most {plan.tokens:,} tokens."
    return [Code(COMMANDS), Table(groups, "Parameters", note=note)]
