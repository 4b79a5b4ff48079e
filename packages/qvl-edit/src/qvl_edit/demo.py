"""`qvl-edit demo`: a tiny Qwen-Image-Edit learns three edits of handwritten digits in random colours.

    qvl-edit demo --out demo --seed 0

1. extract  embeddings of every picture with its instruction, by a random text encoder
2. train    the transformer, whole, from random weights: make it red, invert the colours, flip left and right
3. test     held-out digits, crops of photographs, and controls, judged by the distance to what is right

Real digits, the recipe `tiny_digits`, the common loop, the pipeline that edits at full size. One core, three to four
minutes, no internet.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from qvl_core.demo import judged, take_up
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder, Scalar, result
from qvl_data.convert import write_samples
from qvl_data.example.digits import indices
from qvl_data.example.pictures import PHOTOS, crop
from qvl_data.example.recoloured import CHANGES, SIDE, inked, samples
from qvl_data.example.split import Split
from qvl_data.order import order
from qvl_edit.demo_report import BARS, write_report
from qvl_edit.extract import extract
from qvl_edit.outcomes import Outcomes, outcomes
from qvl_edit.pipeline import EditPipeline
from qvl_edit.recipe import RECIPE, EditRecipe
from qvl_edit.tiny import tiny
from qvl_edit.train import train

SAID = [change.said["en"] for change in CHANGES.values()]
STEPS = 8
WATCHED = 20  # validation digits


@dataclass(frozen=True)
class Size:
    """How long it is trained, and on how much it is tested."""

    digits: int = 1257  # of the training split, each in every edit
    steps: int = 2200  # of 16 pairs
    test: int = 40  # held-out digits, each in every edit


@dataclass(frozen=True)
class Trial:
    """Every edit of some pictures, picture by picture.

    drawn, asked  what was drawn, and which edit it should have been
    """

    sources: Sequence[Image.Image]
    wanted: Sequence[Image.Image]
    drawn: Sequence[Image.Image]
    outcomes: Outcomes

    def success(self, change: str) -> float:
        """The part of one edit's drawings that are right."""
        return float(self.outcomes.right[list(CHANGES).index(change) :: len(CHANGES)].mean())


def demo(out: Path = Path("runs/demo"), seed: int = 0, size: Size = Size()) -> dict[str, Any]:
    """Extract, train, edit; leave report.html and result.json in `out`. Returns the result.

    An interrupted demo is continued by the same command, a finished one is left alone.
    """
    if (done := take_up("qvl-edit", out, seed)) is not None:
        return done
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and one core is what it needs
    base, run = out / "base", out / "runs" / "edits"
    write_data(out / "data", seed, size.digits)
    if not base.is_dir():
        tiny(base, seed, coder="patches")
    recipe = recipe_of(out, seed, size.steps)
    extract(recipe, batch=16)
    train(recipe, run)

    editor, untrained = (EditPipeline.from_pretrained(folder) for folder in (run, base))
    untrained.geometry = editor.geometry  # a checkpoint's own sizes are of large pictures
    digits = [inked(index, seed) for index in indices("test", seed)[: size.test]]
    photos = [ImageOps.fit(crop(photo.name, 4 * SIDE, seed, 0), (SIDE, SIDE)).convert("RGB") for photo in PHOTOS]
    edited, before, of_photos = edit(editor, digits), edit(untrained, digits), edit(editor, photos)
    shuffled = edit(editor, digits, said=another(len(digits), seed))
    figures: dict[str, Scalar] = {
        **{f"success_{change}": edited.success(change) for change in CHANGES},
        "mean_error": edited.outcomes.error,
        "untrained_success": before.outcomes.success,
        "shuffled_success": shuffled.outcomes.success,
        "photo_success": of_photos.outcomes.success,
        "photo_error": of_photos.outcomes.error,
    }
    values = result("qvl-edit", seed=seed, complete=True, figures=figures)
    values |= judged(values, BARS)
    write_report(out, values, edited, of_photos)
    RunFolder(out).write_result(values)
    print(*(f"{name} {value:.3f}" for name, value in figures.items()), sep="\n")
    print(f"missed {values['missed'] or 'no bar'}", RunFolder(out).report_file, sep="\n")
    return dict(values)


def write_data(folder: Path, seed: int, digits: int) -> None:
    """The training digits in every edit, and some others whose loss is watched; nothing depends on these."""
    splits: dict[Split, int] = {"train": digits, "validation": WATCHED}
    for split, count in splits.items():
        if not (file := folder / f"{split}.parquet").is_file():
            write_samples(islice(samples(split, seed), count * len(CHANGES)), file)


def recipe_of(out: Path, seed: int, steps: int) -> EditRecipe:
    """The shipped recipe, for longer."""
    changes = [
        f"model.name={json.dumps(str(out / 'base'))}",
        f"data={{train: {json.dumps(str(out / 'data'))}, validation: {json.dumps(str(out / 'data'))}}}",
        f"stored.embeddings={json.dumps(str(out / 'embeddings'))}",
        f"train={{steps: {steps}, seed: {seed}, clip: 1.0}}",
        f"evaluate={{every: {max(1, steps // 8)}}}",
    ]
    recipe: EditRecipe = load(RECIPE, "tiny_digits", changes, "qvl_edit")
    return recipe


def edit(editor: EditPipeline, pictures: Sequence[Image.Image], said: Sequence[int] | None = None) -> Trial:
    """Every edit of each picture; `said` is the number of the instruction that stands in an edit's place, if others do
    than its own."""
    count = len(CHANGES)
    sources = [picture for picture in pictures for _ in range(count)]
    wanted = [change.make(picture) for picture in pictures for change in CHANGES.values()]
    asked = [place % count for place in range(len(sources))]
    prompts = [SAID[number] for number in (said or asked)]
    drawn = editor(
        prompts,
        image=[[source] for source in sources],
        seed=list(range(len(sources))),
        guidance_scale=1.0,
        num_inference_steps=STEPS,
    ).images
    edits = [wanted[place - place % count :][:count] for place in range(len(sources))]
    return Trial(sources, wanted, drawn, outcomes(drawn, asked, edits, sources))


def another(pictures: int, seed: int) -> list[int]:
    """For every edit of each picture the number of an instruction, at random."""
    count = len(CHANGES)
    return [order(seed, place, pictures * count) % count for place in range(pictures * count)]
