"""`qvl-metaquery demo --coloured`: handwritten digits in five colours, drawn through an autoencoder trained here.

    qvl-metaquery demo --coloured --out demo --seed 0

1. code   a small autoencoder of Sana's kind learns pictures of 32 x 32 pixels; latents of all of them are stored
2. draw   queries, connector and Sana learn these latents by fifty prompts: "a red seven"
3. test   200 drawings and controls; colour and digit are judged apart, by rules that are tried on held-out pictures

What is trained, and how it draws, is as at full size, where the autoencoder is Sana's own. One core, less than ten
minutes, no internet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qvl_core.demo import judged, take_up
from qvl_core.files import new_folder
from qvl_core.run import RunFolder, Scalar, result
from qvl_data.convert import write_samples
from qvl_data.drawing.calls import pictures
from qvl_data.example.coloured import COLOURS, SIDE, samples
from qvl_metaquery.coder import Coder
from qvl_metaquery.coloured_judge import CAPTIONS, ColouredJudge, real
from qvl_metaquery.demo_coloured_report import BARS, colours_right, digits_right, write_report
from qvl_metaquery.demo_parts import (
    STEPS,
    Drawings,
    assign,
    film,
    finish,
    named,
    ring,
    swept,
    tiny_recipe,
    untrained_pipeline,
)
from qvl_metaquery.encode import encode
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.pixels import square, stacked
from qvl_metaquery.recipe import MetaQueryRecipe
from qvl_metaquery.sampling import Sampling
from qvl_metaquery.tiny import tiny_qwen, tiny_sana
from qvl_metaquery.train import train
from qvl_metaquery.train_coder import train_coder

SYSTEM = "Draw it."
CODED = 500  # held-out pictures that are sent through the autoencoder
GUIDANCE = 1.5
ASKED = Sampling(guidance=GUIDANCE, steps=STEPS)
FILMED = ("a red three", "a green seven", "a purple eight")  # whose denoising is shown


@dataclass(frozen=True)
class Size:
    """How long each part is trained, and on how much it is tested."""

    digits: int = 1257  # of the training split, each in every colour
    code: int = 500  # steps of 32 pictures
    draw: int = 700  # steps of 64 drawings
    each: int = 4  # drawings of each prompt


def demo(out: Path = Path("runs/demo-coloured"), seed: int = 0, size: Size = Size()) -> dict[str, Any]:
    """Train, draw, judge; leave report.html and result.json in `out`. Returns the result.

    An interrupted demo is continued by the same command, a finished one is left alone.
    """
    if (done := take_up("qvl-metaquery", out, seed, coloured=True)) is not None:
        return done
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and one core is what it needs
    write_data(out / "data", seed, size.digits)
    write_base(out / "base", seed, size)
    draw = out / "runs" / "draw"
    recipe = drawing_recipe(out, seed, size.draw)
    encode(recipe)
    train(recipe, draw)

    painter = MetaQueryPipeline.from_pretrained(draw)
    judge = ColouredJudge.of(seed)
    asked = np.repeat(np.arange(len(CAPTIONS)), size.each)
    sweep = swept(painter, judge, asked, seed)
    shuffled = named(painter, judge, asked, asked[ring(len(asked), seed)], seed, ASKED)
    untrained = named(untrained_pipeline(recipe, draw), judge, asked, asked, seed, ASKED)
    held_out, shown = real("test", seed)
    known = Drawings(held_out, shown, judge.read(held_out))
    coded, error = reconstructed(painter.coder, held_out[:CODED])
    again = Drawings(coded, shown[:CODED], judge.read(coded))
    drawn = sweep[GUIDANCE]
    figures: dict[str, Scalar] = {
        "recognised": drawn.recognised,
        "digits_recognised": digits_right(drawn),
        "colours_recognised": colours_right(drawn),
        "diversity": drawn.diversity,
        "guidance": GUIDANCE,
        "untrained_recognised": untrained.recognised,
        "shuffled_recognised": shuffled.recognised,
        "reconstruction_error": error,
        "reconstructed_recognised": again.recognised,
        "real_recognised": known.recognised,
        "real_digits_recognised": digits_right(known),
        "real_colours_recognised": colours_right(known),
    }
    films = film(painter, FILMED, seed, ASKED)
    values = result("qvl-metaquery", seed=seed, complete=True, figures={"coloured": True, **figures})
    values |= judged(values, BARS)
    write_report(out, values, sweep, untrained, held_out, again, films)
    return finish(out, values, figures)


def write_data(folder: Path, seed: int, digits: int) -> None:
    """Training digits in every colour."""
    if not (file := folder / "coloured" / "train.parquet").is_file():
        write_samples(islice(samples("train", seed), digits * len(COLOURS)), file)


def write_base(folder: Path, seed: int, size: Size) -> None:
    """A random Qwen3-VL, and a random Sana with an autoencoder that is trained."""
    if not folder.is_dir():
        with new_folder(folder) as aside:
            tiny_qwen(aside / "qwen", [SYSTEM, *CAPTIONS], seed)
            pixels = as_pixels(real("train", seed)[0][: size.digits * len(COLOURS)])
            coder = train_coder(pixels, size.code, seed, RunFolder(aside))
            tiny_sana(aside / "sana", seed, coder, SIDE)


def drawing_recipe(out: Path, seed: int, steps: int) -> MetaQueryRecipe:
    """The shipped recipe at a higher rate, of larger pictures, whose latents are stored."""
    latents = assign("flow.latents", out / "data" / "latents")
    return tiny_recipe(out, seed, steps, "coloured", f"flow.size={SIDE}", latents, "optim.lr=3e-3")


def reconstructed(coder: Coder, images: Sequence[Image.Image]) -> tuple[list[Image.Image], float]:
    """Pictures after the way to latents and back, and how far a number is off on average, as a part of their range."""
    pixels = as_pixels(images)
    back = coder.decode(coder.encode(pixels))
    return pictures(back.cpu().numpy()), float((back - pixels).abs().mean() / 2)


def as_pixels(images: Sequence[Image.Image]) -> Tensor:
    """(B, 3, SIDE, SIDE) in [-1, 1]"""
    return stacked([square(image, SIDE) for image in images])
