"""`qvl-metaquery demo`: a tiny Qwen3-VL that knows digits is asked for them, and a tiny Sana draws them.

    qvl-metaquery demo --out demo --seed 0

1. base   a tiny Qwen3-VL learns which digit a picture shows and a name says, and is frozen from then on
2. draw   queries, connector and Sana learn ten prompts: "a handwritten seven"
3. edit   connector and Sana go on, as a second stage, with pictures: "the same digit, inverted"
4. test   100 drawings, 100 held-out pictures to be inverted, and controls, judged by the nearest real training digit

Real digits, the shipped recipe `tiny`, the common loop, the pipeline that draws at full size. One core, about three
minutes, no internet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from qvl_core.demo import judged, take_up
from qvl_core.files import new_folder
from qvl_core.qwen3vl.groups import GROUPS
from qvl_core.run import Scalar, result
from qvl_data.convert import write_samples
from qvl_data.example.digits import digit_png, digits_dataset, indices
from qvl_data.example.drawings import INVERT, caption, drawings
from qvl_data.sample import Message, Part, Sample
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
from qvl_metaquery.demo_report import BARS, write_report
from qvl_metaquery.judge import DigitJudge, real
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.recipe import MetaQueryRecipe
from qvl_metaquery.sampling import Sampling
from qvl_metaquery.tiny import tiny_qwen, tiny_sana
from qvl_metaquery.train import train
from qvl_vision.demo_training import recipe_of
from qvl_vision.demo_training import train as train_base

SAID = INVERT["en"]
SYSTEM = "Draw it."
TEXTS = [SYSTEM, SAID, *map(caption, range(10))]  # for the tokenizer: each word is a token
NAMED = 20  # times that each name is among what the base learns
GUIDANCE = 3.0
ASKED = Sampling(guidance=GUIDANCE, steps=STEPS)
SHOWN = Sampling(guidance=1.0, image_guidance=2.0, steps=STEPS, negative=SAID)  # pictures alone are guided
FILMED = (3, 7, 8)  # digits whose denoising is shown


@dataclass(frozen=True)
class Size:
    """How long each stage is trained, and on how much it is tested."""

    base: int = 200  # steps of 32 questions
    draw: int = 400  # steps of 64 drawings
    edit: int = 480  # steps of 64 pictures to be inverted
    each: int = 10  # drawings of each digit
    inverted: int = 100  # held-out pictures


def demo(out: Path = Path("runs/demo"), seed: int = 0, size: Size = Size()) -> dict[str, Any]:
    """Train, draw, judge; leave report.html and result.json in `out`. Returns the result.

    An interrupted demo is continued by the same command, a finished one is left alone.
    """
    if (done := take_up("qvl-metaquery", out, seed, coloured=False)) is not None:
        return done
    torch.set_num_threads(1)  # the same sums in the same order on every machine, and one core is what it needs
    write_data(out / "data", seed)
    write_base(out / "base", seed)
    taught(out, seed, size.base)
    draw, edit = out / "runs" / "draw", out / "runs" / "edit"
    drawing = drawing_recipe(out, seed, size.draw)
    train(drawing, draw)
    train(editing_recipe(out, seed, size.edit), edit)

    painter, editor = (MetaQueryPipeline.from_pretrained(run) for run in (draw, edit))
    judge = DigitJudge(*real("train", seed))
    asked = np.repeat(np.arange(10), size.each)
    sweep = swept(painter, judge, asked, seed)
    shuffled = named(painter, judge, asked, asked[ring(len(asked), seed)], seed, ASKED)
    untrained = named(untrained_pipeline(drawing, draw), judge, asked, asked, seed, ASKED)
    shown = indices("test", seed)[: size.inverted]
    inverted = inverting(editor, judge, shown, shown)
    blind = inverting(editor, judge, shown, [shown[place] for place in ring(len(shown), seed)])
    figures: dict[str, Scalar] = {
        "recognised": sweep[GUIDANCE].recognised,
        "diversity": sweep[GUIDANCE].diversity,
        "guidance": GUIDANCE,
        "untrained_recognised": untrained.recognised,
        "shuffled_recognised": shuffled.recognised,
        "i2i_success": inverted.recognised,
        "i2i_shuffled": blind.recognised,
    }
    films = film(painter, [caption(digit) for digit in FILMED], seed, ASKED)
    values = result("qvl-metaquery", seed=seed, complete=True, figures={"coloured": False, **figures})
    values |= judged(values, BARS)
    write_report(out, values, sweep, shown, inverted, films)
    return finish(out, values, figures)


def write_data(folder: Path, seed: int) -> None:
    """The training digits to be drawn, of both kinds, and what the base learns of them."""
    for kind in ("named", "inverted"):
        if not (file := folder / kind / "train.parquet").is_file():
            write_samples(drawings("train", [kind], seed), file)
    if not (file := folder / "known" / "train.parquet").is_file():
        write_samples([*digits_dataset("digit", "train", seed), *map(named_in_words, range(10 * NAMED))], file)


def named_in_words(number: int) -> Sample:
    """What is asked for by name, and the digit that is meant."""
    digit = number % 10
    asked = Message(role="user", parts=(Part(type="text", text=caption(digit)),))
    answered = Message(role="assistant", parts=(Part(type="text", text=str(digit)),))
    return Sample(id=f"named-{number}", task="chat", messages=(asked, answered))


def write_base(folder: Path, seed: int) -> None:
    """A random Qwen3-VL and a random Sana."""
    if not folder.is_dir():
        with new_folder(folder) as aside:
            tiny_qwen(aside / "qwen", TEXTS, seed)
            tiny_sana(aside / "sana", seed)


def taught(out: Path, seed: int, steps: int) -> Path:
    """The Qwen3-VL that is asked: every weight learns digits, as the released ones have learned what they know."""
    whole = {group: {"mode": "full"} for group in GROUPS}
    recipe = recipe_of(out / "base" / "qwen", out / "data" / "known", whole, steps, seed, lr=1.5e-3)
    return train_base(recipe, out / "runs" / "base", [], "qvl-metaquery")


def drawing_recipe(out: Path, seed: int, steps: int) -> MetaQueryRecipe:
    """Stage one: the shipped recipe."""
    return tiny_recipe(out, seed, steps, "named", assign("model.name", out / "runs" / "base" / "final"))


def editing_recipe(out: Path, seed: int, steps: int) -> MetaQueryRecipe:
    """Stage two. A picture decides most where noise is high, so that noise levels are shifted towards it; queries that
    ask which digit is named ask which one is shown, too, and stay as they are."""
    named = (("model.name", out / "runs" / "base" / "final"), ("model.init_from", out / "runs" / "draw" / "final"))
    more = ("flow.task=edit", "flow.train_shift=3", "flow.sample_shift=1", "optim.lr=3e-3", "tune.queries.mode=frozen")
    return tiny_recipe(out, seed, steps, "inverted", *(assign(key, path) for key, path in named), *more)


def inverting(pipeline: MetaQueryPipeline, judge: DigitJudge, wanted: Sequence[int], shown: Sequence[int]) -> Drawings:
    """An inverted drawing of each picture that is shown, judged when it is inverted back; asked is what the judge reads
    in the picture that is wanted. Pictures are named by their numbers in the set."""
    sources = [[source(number)] for number in shown]
    drawn = pipeline(caption=[SAID] * len(shown), image=sources, seed=list(range(len(shown))), **SHOWN.arguments())
    asked = judge.read([source(number) for number in wanted])
    return Drawings(drawn.images, asked, judge.read([ImageOps.invert(image) for image in drawn.images]))


def source(number: int) -> Image.Image:
    """A picture as Qwen3-VL sees it: digit `number` of the set, 64 x 64 pixels."""
    return Image.open(BytesIO(digit_png(number))).convert("RGB")
