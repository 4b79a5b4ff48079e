"""What the demos have in common: their recipe, drawings by name and how they are read, controls, films."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from qvl_core.recipe.load import load
from qvl_core.run import RunFolder, Scalar
from qvl_core.training.world import World
from qvl_data.drawing.calls import pictures
from qvl_data.order import order
from qvl_metaquery.build import base_of, open_parts
from qvl_metaquery.opening import sample_shift
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.recipe import RECIPE, MetaQueryRecipe
from qvl_metaquery.sampling import Sampling

SWEEP = (1.0, 1.5, 2.0, 3.0, 4.0)  # guidance; the figures are at one of these, the others are shown beside it
STEPS = 20
Numbers = NDArray[np.int64]


class Judge(Protocol):
    """Who reads drawings: each is told which of `captions` it shows."""

    @property
    def captions(self) -> Sequence[str]:
        """All that can be asked for, by number."""

    def read(self, images: Sequence[Image.Image]) -> Numbers:
        """(D,) the number of what each shows."""

    def diversity(self, images: Sequence[Image.Image], said: Numbers) -> float:
        """How far drawings that were asked for alike (D,) lie apart, as a part of how far real ones do."""


@dataclass(frozen=True)
class Drawings:
    """What was drawn of prompts, and how the judge reads it.

    asked  (D,) the number of what each drawing is to show
    read   (D,) the number of what it is taken for
    """

    images: Sequence[Image.Image]
    asked: Numbers
    read: Numbers
    diversity: float = 0.0

    @property
    def right(self) -> NDArray[np.bool_]:
        """(D,)"""
        return self.read == self.asked

    @property
    def recognised(self) -> float:
        return float(self.right.mean())


def tiny_recipe(out: Path, seed: int, steps: int, kind: str, *more: str) -> MetaQueryRecipe:
    """The shipped recipe `tiny` with a demo's own parts (out/base) and data (out/data/<kind>)."""
    changes = [
        assign("model.name", out / "base" / "qwen"),
        assign("sana.name", out / "base" / "sana"),
        f"data={{train: {json.dumps(str(out / 'data' / kind))}}}",
        f"train={{steps: {steps}, seed: {seed}}}",
        f"sampling.preview={max(1, steps // 7)}",
        *more,
    ]
    recipe: MetaQueryRecipe = load(RECIPE, "tiny", changes, "qvl_metaquery")
    return recipe


def assign(key: str, path: Path) -> str:
    """The change of a recipe's key to a path, quoted: in YAML a path may mean something else."""
    return f"{key}={json.dumps(str(path))}"


def untrained_pipeline(recipe: MetaQueryRecipe, run: Path) -> MetaQueryPipeline:
    """The model of a run as it was before the first step."""
    world = World(0, 1, torch.device("cpu"), "single")
    recipe = base_of(recipe, RunFolder(run), world)
    opened = open_parts(recipe, world)
    shift = sample_shift(recipe.settings, opened.sana)
    return MetaQueryPipeline(opened.model, opened.processor, opened.coder, recipe.settings, shift)


def named(
    pipeline: MetaQueryPipeline, judge: Judge, asked: Numbers, said: Numbers, seed: int, how: Sampling
) -> Drawings:
    """A drawing for each number that is asked for (D,), by the caption of the one that is said (D,)."""
    seeds = [1000 * seed + place for place in range(len(said))]
    captions = [judge.captions[number] for number in said]
    images = pipeline(caption=captions, seed=seeds, **how.arguments()).images
    return Drawings(images, asked, judge.read(images), judge.diversity(images, said))


def swept(pipeline: MetaQueryPipeline, judge: Judge, asked: Numbers, seed: int) -> dict[float, Drawings]:
    """The same drawings by guidance."""
    return {guidance: named(pipeline, judge, asked, asked, seed, Sampling(guidance, steps=STEPS)) for guidance in SWEEP}


def film(
    pipeline: MetaQueryPipeline, captions: Sequence[str], seed: int, how: Sampling
) -> Mapping[str, list[Image.Image]]:
    """What is there after each step of a few drawings, from the noise on, by caption."""
    frames: list[list[Image.Image]] = []

    def keep(step: int, latents: Tensor) -> None:
        frames.append(pictures(pipeline.coder.decode(latents).cpu().numpy()))

    pipeline(caption=captions, seed=seed, on_step=keep, **how.arguments())
    return {caption: [frame[place] for frame in frames] for place, caption in enumerate(captions)}


def finish(out: Path, values: Mapping[str, Scalar], figures: Mapping[str, Scalar]) -> dict[str, Any]:
    """Write the result, which ends a demo, and print its figures and the bars that it missed."""
    RunFolder(out).write_result(values)
    print(*(f"{name} {value:.3f}" for name, value in figures.items()), sep="\n")
    print(f"missed {values['missed'] or 'no bar'}", RunFolder(out).report_file, sep="\n")
    return dict(values)


def ring(count: int, seed: int) -> list[int]:
    """For each place that of another one: a random ring, in which each takes its neighbour's."""
    places = [order(seed, position, count) for position in range(count)]
    other = {place: places[position - 1] for position, place in enumerate(places)}
    return [other[place] for place in range(count)]
