"""`qvl-metaquery demo`: a frozen, random Qwen3-VL is asked for handwritten digits, and a tiny Sana draws them.

    qvl-metaquery demo --out demo --seed 0

1. draw   queries, connector and Sana learn ten prompts: "a handwritten seven"
2. edit   the same weights go on, as a second stage, with pictures: "the same digit, inverted"
3. test   100 drawings, 100 held-out pictures to be inverted, and controls, judged by the nearest real training digit

Real digits, the shipped recipe `tiny`, the common loop, the pipeline that draws at full size. One core, about three
minutes, no internet.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from qvl_core.demo import judged, take_up
from qvl_core.files import new_folder
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder, Scalar, result
from qvl_core.training.world import World
from qvl_data.convert import write_samples
from qvl_data.example.digits import digit_png, indices
from qvl_data.example.drawings import INVERT, caption, drawings
from qvl_data.order import order
from qvl_metaquery.build import base_of, open_parts
from qvl_metaquery.demo_report import BARS, write_report
from qvl_metaquery.judge import Digits, diversity, grey, nearest, real
from qvl_metaquery.opening import sample_shift
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.pixels import pictures
from qvl_metaquery.recipe import RECIPE, MetaQueryRecipe
from qvl_metaquery.sampling import Sampling
from qvl_metaquery.tiny import tiny_qwen, tiny_sana
from qvl_metaquery.train import train

DIGITS = range(10)
SAID = INVERT["en"]
SYSTEM = "Draw it."
TEXTS = [SYSTEM, SAID, *map(caption, DIGITS)]  # for the tokenizer: each word is a token
GUIDANCE = 2.0  # of the figures; that of the sweep is shown beside it
SWEEP = (1.0, 1.5, GUIDANCE, 3.0, 4.0)
STEPS = 20
ASKED = Sampling(guidance=GUIDANCE, steps=STEPS)
SHOWN = Sampling(guidance=1.0, image_guidance=1.0, steps=STEPS)  # a prompt with a picture
FILMED = (3, 7, 8)  # digits whose denoising is shown


@dataclass(frozen=True)
class Size:
    """How long each stage is trained, and on how much it is tested."""

    draw: int = 400  # steps of 64 drawings
    edit: int = 720  # steps of 32 pictures to be inverted
    each: int = 10  # drawings of each digit
    inverted: int = 100  # held-out pictures


@dataclass(frozen=True)
class Drawings:
    """What was drawn of prompts, and how the judge reads it.

    asked  (D,) the digit that each drawing is to show
    read   (D,) the digit that it is nearest to
    """

    images: Sequence[Image.Image]
    asked: Digits
    read: Digits
    diversity: float = 0.0

    @property
    def recognised(self) -> float:
        return float((self.read == self.asked).mean())


def demo(out: Path = Path("runs/demo"), seed: int = 0, size: Size = Size()) -> dict[str, Any]:
    """Train, draw, judge; leave report.html and result.json in `out`. Returns the result.

    An interrupted demo is continued by the same command, a finished one is left alone.
    """
    if (done := take_up("qvl-metaquery", out, seed)) is not None:
        return done
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and one core is what it needs
    write_data(out / "data", seed)
    write_base(out / "base", seed)
    draw, edit = out / "runs" / "draw", out / "runs" / "edit"
    train(drawing_recipe(out, seed, size.draw), draw)
    train(editing_recipe(out, seed, size.edit), edit)

    painter, editor = (MetaQueryPipeline.from_pretrained(run) for run in (draw, edit))
    asked = np.repeat(np.arange(10), size.each)
    sweep = {guidance: named(painter, asked, asked, Sampling(guidance, steps=STEPS), seed) for guidance in SWEEP}
    shuffled = named(painter, asked, asked[ring(len(asked), seed)], ASKED, seed)
    untrained = named(untrained_pipeline(out, seed), asked, asked, ASKED, seed)
    shown = indices("test", seed)[: size.inverted]
    inverted = inverting(editor, shown, shown, seed)
    blind = inverting(editor, shown, [shown[place] for place in ring(len(shown), seed)], seed)
    figures: dict[str, Scalar] = {
        "recognised": sweep[GUIDANCE].recognised,
        "diversity": sweep[GUIDANCE].diversity,
        "guidance": GUIDANCE,
        "untrained_recognised": untrained.recognised,
        "shuffled_recognised": shuffled.recognised,
        "i2i_success": inverted.recognised,
        "i2i_shuffled": blind.recognised,
    }
    films = film(painter, seed)
    values = result("qvl-metaquery", seed=seed, complete=True, figures=figures)
    values |= judged(values, BARS)
    write_report(out, values, sweep, untrained, shown, inverted, films)
    RunFolder(out).write_result(values)
    print(*(f"{name} {value:.3f}" for name, value in figures.items()), sep="\n")
    print(f"missed {values['missed'] or 'no bar'}", RunFolder(out).report_file, sep="\n")
    return dict(values)


def write_data(folder: Path, seed: int) -> None:
    """The training digits of both kinds."""
    for kind in ("named", "inverted"):
        if not (file := folder / kind / "train.parquet").is_file():
            write_samples(drawings("train", [kind], seed), file)


def write_base(folder: Path, seed: int) -> None:
    """A random Qwen3-VL and a random Sana."""
    if not folder.is_dir():
        with new_folder(folder) as aside:
            tiny_qwen(aside / "qwen", TEXTS, seed)
            tiny_sana(aside / "sana", seed)


def drawing_recipe(out: Path, seed: int, steps: int) -> MetaQueryRecipe:
    """Stage one: the shipped recipe."""
    return _recipe(out, seed, steps, "named")


def editing_recipe(out: Path, seed: int, steps: int) -> MetaQueryRecipe:
    """Stage two. A picture decides most where noise is high, so that noise levels are shifted towards it."""
    stage = out / "runs" / "draw" / "final"
    more = ("flow.task=edit", "flow.train_shift=3", "flow.sample_shift=1", "batch.size=32", "optim.lr=3e-3")
    return _recipe(out, seed, steps, "inverted", _set("model.init_from", stage), *more)


def _recipe(out: Path, seed: int, steps: int, kind: str, *more: str) -> MetaQueryRecipe:
    changes = [
        _set("model.name", out / "base" / "qwen"),
        _set("sana.name", out / "base" / "sana"),
        f"data={{train: {json.dumps(str(out / 'data' / kind))}}}",
        f"train={{steps: {steps}, seed: {seed}}}",
        f"sampling.preview={max(1, steps // 7)}",
        *more,
    ]
    recipe: MetaQueryRecipe = load(RECIPE, "tiny", changes, "qvl_metaquery")
    return recipe


def _set(key: str, path: Path) -> str:
    return f"{key}={json.dumps(str(path))}"  # quoted: in YAML a path may mean something else


def untrained_pipeline(out: Path, seed: int) -> MetaQueryPipeline:
    """The model as it was before the first step."""
    run = RunFolder(out / "runs" / "draw")
    world = World(0, 1, torch.device("cpu"), "single")
    recipe = base_of(drawing_recipe(out, seed, 1), run, world)
    opened = open_parts(recipe, world)
    shift = sample_shift(recipe.settings, opened.sana)
    return MetaQueryPipeline(opened.model, opened.processor, opened.coder, recipe.settings, shift)


def named(pipeline: MetaQueryPipeline, asked: Digits, said: Digits, how: Sampling, seed: int) -> Drawings:
    """A drawing for each digit that is asked for (D,), by the name of the digit that is said (D,)."""
    seeds = [1000 * seed + place for place in range(len(said))]
    drawn = pipeline(caption=[caption(int(digit)) for digit in said], seed=seeds, **how.arguments())
    known, digits = real("train", seed)
    pixels = grey(drawn.images)
    return Drawings(drawn.images, asked, nearest(pixels, known, digits), diversity(pixels, said, known, digits))


def inverting(pipeline: MetaQueryPipeline, wanted: Sequence[int], shown: Sequence[int], seed: int) -> Drawings:
    """An inverted drawing of each picture that is shown, judged when it is inverted back; asked is what the judge reads
    in the picture that is wanted. Pictures are named by their numbers in the set."""
    sources = [[source(number)] for number in shown]
    drawn = pipeline(caption=[SAID] * len(shown), image=sources, seed=list(range(len(shown))), **SHOWN.arguments())
    known, digits = real("train", seed)
    back = [ImageOps.invert(image) for image in drawn.images]
    asked = nearest(grey([source(number) for number in wanted]), known, digits)
    return Drawings(drawn.images, asked, nearest(grey(back), known, digits))


def source(number: int) -> Image.Image:
    """A picture as Qwen3-VL sees it: digit `number` of the set, 64 x 64 pixels."""
    import io

    return Image.open(io.BytesIO(digit_png(number))).convert("RGB")


def film(pipeline: MetaQueryPipeline, seed: int) -> dict[int, list[Image.Image]]:
    """What is there after each step of a few drawings, from the noise on."""
    frames: list[list[Image.Image]] = []

    def keep(step: int, latents: Tensor) -> None:
        frames.append(pictures(pipeline.coder.decode(latents)))

    pipeline(caption=[caption(digit) for digit in FILMED], seed=seed, on_step=keep, **ASKED.arguments())
    return {digit: [frame[place] for frame in frames] for place, digit in enumerate(FILMED)}


def ring(count: int, seed: int) -> list[int]:
    """For each place that of another one: a random ring, in which each takes its neighbour's."""
    places = [order(seed, position, count) for position in range(count)]
    other = {place: places[position - 1] for position, place in enumerate(places)}
    return [other[place] for place in range(count)]
