"""From samples to the batches of a step: prompt, picture, noise and its level, all from (seed, position) alone.

So a resumed run learns from what the uninterrupted one would have, and the same for any number of processes, workers
and micro-batches. Equal prompts of a batch (the empty one, above all) are read once.

Shapes: B pictures, U different prompts, C x H x W of a latent, S side of a picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from qvl_core.qwen3vl.batch import Batch
from qvl_core.qwen3vl.batch import collate as collate_chats
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.training.samples import LeftOut
from qvl_core.training.seeds import mix
from qvl_data.errors import BadSample
from qvl_data.sample import Sample
from qvl_data.sources import Item, Mixture
from qvl_metaquery.dropout import Task, dropped
from qvl_metaquery.flow import noise_level
from qvl_metaquery.pixels import square, stacked
from qvl_metaquery.prompts import TOKEN, Prompt, PromptLayout, encode
from qvl_metaquery.recipe import Times
from qvl_metaquery.wanted import wanted

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing(Encoded):
    """A prompt, as `Encoded` has it, and what is to be learned from it.

    picture  (3, S, S) in [-1, 1], or (C, H, W) latents that were computed before
    noise    (C, H, W)
    level    of the noise, in (0, 1]
    share    what the loss counts it: 1, or 0 for a witness
    """

    picture: Array
    noise: Array
    level: float
    share: int = 1

    @property
    def count(self) -> int:
        """The loss is a mean over pictures."""
        return self.share


@dataclass(frozen=True, slots=True)
class DrawingBatch:
    """Tensors of one forward."""

    prompts: Batch
    """U rows, padded on the right"""
    prompt_of: Tensor
    """(B,) int64: prompt of each picture"""
    pictures: Tensor
    """(B, 3, S, S) or, `coded`, (B, C, H, W)"""
    noise: Tensor
    """(B, C, H, W)"""
    levels: Tensor
    """(B,) float32"""
    shares: Tensor
    """(B,) float32: 1, or 0 for what is not learned"""
    coded: bool

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DrawingBatch":
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "DrawingBatch":
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> "DrawingBatch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if name != "coded"})


Collate = Callable[[Sequence[Drawing]], DrawingBatch]


@dataclass(frozen=True)
class Corruption:
    """How a picture's noise, its level, and what is left out of its prompt are drawn.

    shape  (C, H, W) of a latent
    """

    shape: tuple[int, int, int]
    shift: float = 1.0
    times: Times = "uniform"
    part: float = 0.1

    def draw(self, seed: int, position: int) -> tuple[Array, float, float]:
        """Noise, its level, and a number of [0, 1) that decides what is left out."""
        rng = np.random.default_rng(mix(seed, "drawing", position))
        level, choice = rng.random(2)
        noise = rng.standard_normal(self.shape, dtype=np.float32)
        return noise, noise_level(float(level), self.shift, self.times), float(choice)


@dataclass
class DrawingSamples:
    """`qvl_core.training.samples.Samples` over a mixture of pictures and what asks for them.

    latents  of a sample's picture, computed before; default: pictures are opened and cut to `size`
    """

    mixture: Mixture
    processor: Any
    layout: PromptLayout
    corruption: Corruption
    task: Task
    size: int
    seed: int
    latents: "Callable[[Any], Array] | None" = None

    def __len__(self) -> int:
        return len(self.mixture)

    def length(self, position: int) -> int:
        """Pictures are grouped by nothing: all are of one size."""
        return 1

    def encode(self, position: int) -> Drawing:
        """The sample at `position`. Raises LeftOut if it cannot be used."""
        return self.encode_item(self.mixture.locate(self.seed, position), position)

    def encode_item(self, item: Item, position: int = 0) -> Drawing:
        """One draw of the mixture, with the noise of `position`. Raises LeftOut."""
        noise, level, choice = self.corruption.draw(self.seed, position)
        try:
            return self.drawing(self.mixture.sample(item), noise, level, choice)
        except BadSample as error:
            raise LeftOut(self.mixture.bad(item, error)) from None

    def drawing(self, sample: Sample, noise: Array, level: float, choice: float = 1.0) -> Drawing:
        """A sample with noise (C, H, W) of a level; `choice` decides what is left out, 1: nothing. Raises BadSample."""
        asked = wanted(sample, self.task)
        task: Task = self.task if asked.prompt.pictures else "t2i"
        left_out = dropped(task, choice, self.corruption.part)
        prompt = encode(asked.prompt.without(*left_out), self.processor, self.layout, sample.id)
        picture = square(asked.picture(), self.size) if self.latents is None else self.latents(sample)
        whole = {field.name: getattr(prompt, field.name) for field in fields(Encoded)}
        return Drawing(**whole, picture=picture, noise=noise, level=level)


def witness(samples: DrawingSamples, pictured: bool = False) -> Drawing:
    """A picture that is not learned (see `qvl_core.training.batches.SampleBatches`); `pictured`: its prompt has one."""
    shown = (Image.new("RGB", (2 * TOKEN, 2 * TOKEN)),) if pictured else ()
    prompt = encode(Prompt(pictures=shown), samples.processor, samples.layout, "witness")
    noise = np.zeros(samples.corruption.shape, np.float32)
    picture = noise if samples.latents else np.zeros((3, samples.size, samples.size), np.float32)
    whole = {field.name: getattr(prompt, field.name) for field in fields(Encoded)}
    return Drawing(**whole, picture=picture, noise=noise, level=1.0, share=0)


def collation(processor: Any, coded: bool) -> Collate:
    """A function that can be pickled to workers."""
    tokenizer, merge = processor.tokenizer, processor.image_processor.merge_size
    return partial(collate, coded=coded, merge=merge, pad_id=tokenizer.pad_token_id)


def collate(samples: Sequence[Drawing], coded: bool, merge: int, pad_id: int) -> DrawingBatch:
    """One batch of samples whose pictures are of one size; `coded`: they are latents."""
    prompts, prompt_of = distinct(samples)
    return DrawingBatch(
        prompts=collate_chats(prompts, False, merge, pad_id),
        prompt_of=torch.tensor(prompt_of),
        pictures=stacked([sample.picture for sample in samples]),
        noise=stacked([sample.noise for sample in samples]),
        levels=torch.tensor([sample.level for sample in samples], dtype=torch.float32),
        shares=torch.tensor([sample.share for sample in samples], dtype=torch.float32),
        coded=coded,
    )


def distinct(prompts: Sequence[Encoded]) -> tuple[list[Encoded], list[int]]:
    """Prompts without those that come again, and the number of each; with pictures, all are taken to differ."""
    found: list[Encoded] = []
    known: dict[bytes, int] = {}
    number = []
    for prompt in prompts:
        key = prompt.ids.tobytes() if prompt.images is None else None
        if key is None or key not in known:
            if key is not None:
                known[key] = len(found)
            number.append(len(found))
            found.append(prompt)
        else:
            number.append(known[key])
    return found, number
