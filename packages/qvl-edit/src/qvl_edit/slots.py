"""The micro-batches of each step: its slots drawn, brought into buckets, cut into forwards, and read.

Everything about a slot is a function of (seed, step, slot): its sample, its text, its noise and the noise's level. So a
resumed run learns from what the uninterrupted one would have, and so does one of other processes or micro-batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from qvl_core.recipe.blocks import Train
from qvl_core.training.parts import Micro
from qvl_core.training.samples import Bad
from qvl_data.errors import BadSample
from qvl_data.formats import edit
from qvl_data.media import in_memory
from qvl_data.sample import Sample
from qvl_edit.batch import Array, EditBatch, Example, collate
from qvl_edit.cut import Bucket, Size, cut, deal
from qvl_edit.geometry import Geometry, numbers, resized
from qvl_edit.mixture import Draw, Mixture
from qvl_edit.packing import Grid
from qvl_edit.questions import bucket_of, sources_of, target_of, texts_of
from qvl_edit.recipe import Times
from qvl_edit.tasks import Tasks
from qvl_edit.texts import Choice, Text, choose, directed
from qvl_edit.times import Shift, level_of, noise_of

Coded = Callable[[Sample, int, Size], Array]
"""(C, H, W) of one of a sample's media at a size in pixels, as `Vae.raw` gives it. Raises BadSample."""
Told = Callable[[Sample, Sequence[int], str], tuple[Tensor, ...]]
"""The embedding of a text about some of a sample's media, in pieces (L_i, D). Raises BadSample."""


def any_length(pictures: int, text: str) -> int:
    """Texts of any length go together."""
    return 0


class InSlot(NamedTuple):
    """What stands in a slot: a sample, one of its texts with its length, and the sizes of its pictures as they are
    learned."""

    slot: int
    draw: Draw
    choice: Choice
    bucket: Bucket
    length: int = 0


@dataclass(frozen=True)
class Plan:
    """One process's forwards of a step; an empty one is of a witness alone."""

    step: int
    forwards: tuple[tuple[InSlot, ...], ...]
    bad: tuple[Bad, ...]
    together: bool  # with other processes, which wait for each forward


@dataclass(frozen=True)
class Corruption:
    """How noise and its level are drawn.

    channels  of latents
    """

    channels: int
    grid: Grid
    shift: Shift
    times: Times = "uniform"

    @property
    def features(self) -> int:
        """Of a token."""
        return self.grid.features(self.channels)

    def tokens(self, bucket: Bucket) -> int:
        """Of a target."""
        return self.grid.tokens(bucket.target)


@dataclass(frozen=True)
class Reading:
    """From a sample to what is learned of it.

    told     embeddings of texts and pictures, of width `width`
    inverse  the way back is learned, too
    coded    latents of one of a sample's media at a size, computed before; None: pictures are opened
    length   of a text with so many pictures, where those of a forward have to be equal; else 0
    """

    told: Told
    width: int
    geometry: Geometry
    corruption: Corruption
    inverse: bool = True
    coded: Coded | None = None
    length: Callable[[int, str], int] = any_length

    def texts(self, sample: Sample) -> tuple[Text, ...]:
        """Those that a sample can be learned from. Raises BadSample if there are none."""
        return texts_of(sample, self.inverse)

    def bucket(self, sample: Sample, text: Text) -> Bucket:
        """The sizes of a sample's pictures as a text learns them. Raises BadSample."""
        return bucket_of(sample, text, self.geometry)

    def example(self, sample: Sample, choice: Choice, bucket: Bucket, noise: Array, level: float) -> Example:
        """Everything read. Raises BadSample."""
        target, sources = directed(choice.text, target_of(sample), sources_of(sample))
        if self.coded is None:
            sample = in_memory(sample, (target, *sources))
            pictures = tuple(map(numbers, self.pictures(sample, choice.text, bucket)))
        else:
            shown = zip((target, *sources), bucket.sizes, strict=True)
            pictures = tuple(self.coded(sample, index, size) for index, size in shown)
        told = self.told(sample, sources, said(sample, choice))
        return Example(id=sample.id, bucket=bucket, pictures=pictures, told=told, noise=noise, level=level)

    def pictures(self, sample: Sample, text: Text, bucket: Bucket) -> list[Image]:
        """Target and sources as a text learns them, opened and brought to size. Raises BadSample."""
        target, sources = directed(text, target_of(sample), sources_of(sample))
        opened = [sample.opener.open(sample.media[index]) for index in (target, *sources)]
        return [resized(picture, size) for picture, size in zip(opened, bucket.sizes, strict=True)]

    def collate(self, examples: Sequence[Example]) -> EditBatch:
        """One batch of samples of one bucket."""
        return collate(examples, coded=self.coded is not None)

    def witness(self) -> Example:
        """What changes no gradient: the smallest picture, for a process that has nothing to learn while others do."""
        corruption, side = self.corruption, self.corruption.grid.unit
        bucket = Bucket((side, side))
        shape = (3, side, side) if self.coded is None else (corruption.channels, *corruption.grid.places(bucket.target))
        return Example(
            id="witness",
            bucket=bucket,
            pictures=(np.zeros(shape, np.float32),),
            told=(torch.zeros(1, self.width),),
            noise=np.zeros((corruption.tokens(bucket), corruption.features), np.float32),
            level=1.0,
            share=0,
        )


@dataclass(frozen=True)
class EditBatches:
    """`qvl_core.training.parts.Batches` of tasks."""

    tasks: Tasks
    mixture: Mixture
    reading: Reading
    dropout: float = 0.05
    micro: int | None = None

    def plan(self, step: int, rank: int, world: int) -> Plan:
        found: list[InSlot] = []
        bad = [*self.tasks.bad] if step == rank == 0 else []  # never drawn, so told once
        for slot, draw in enumerate(self.mixture.draw(step)):
            try:
                found.append(self.wanted(step, slot, draw))
            except BadSample as error:
                if slot % world == rank:
                    bad.append(self.bad_of(draw, error))
        forwards = deal(
            cut([one.bucket for one in found], self.micro, world, [one.length for one in found]), rank, world
        )
        return Plan(step, tuple(tuple(found[at] for at in forward) for forward in forwards), tuple(bad), world > 1)

    def build(self, plan: Plan) -> list[Micro]:
        micros = [self._micro(plan, forward) for forward in plan.forwards]
        return [Micro(None, 0, 0, (), 0, plan.bad), *micros] if plan.bad else micros

    def wanted(self, step: int, slot: int, draw: Draw) -> InSlot:
        """What stands in a slot, nothing opened but headers. Raises BadSample."""
        sample = self.tasks.mixture.outline(self.tasks.item(*draw))
        choice = choose(self.reading.texts(sample), self.mixture.seed, step, slot, self.dropout)
        bucket = self.reading.bucket(sample, choice.text)
        return InSlot(slot, draw, choice, bucket, self.reading.length(len(bucket.sources), said(sample, choice)))

    def example(self, step: int, wanted: InSlot) -> Example:
        """What is learned in a slot. Raises BadSample."""
        corruption, seed, slot = self.reading.corruption, self.mixture.seed, wanted.slot
        tokens = corruption.tokens(wanted.bucket)
        noise = noise_of(seed, step, slot, (tokens, corruption.features))
        sample = self.sample(wanted.draw)
        return self.reading.example(sample, wanted.choice, wanted.bucket, noise, self.level(step, wanted))

    def level(self, step: int, wanted: InSlot) -> float:
        """Of the noise in a slot, in (0, 1]."""
        corruption = self.reading.corruption
        level = level_of(self.mixture.seed, step, wanted.slot, self.mixture.size, corruption.times)
        return corruption.shift(level, corruption.tokens(wanted.bucket))

    def pictures(self, wanted: InSlot) -> list[Image]:
        """Target and sources of a slot, as they are learned. Raises BadSample."""
        return self.reading.pictures(self.sample(wanted.draw), wanted.choice.text, wanted.bucket)

    def sample(self, draw: Draw) -> Sample:
        """Raises BadSample."""
        return self.tasks.mixture.sample(self.tasks.item(*draw))

    def bad_of(self, draw: Draw, error: BadSample) -> Bad:
        """The sample of a draw, which is left out for an error."""
        return self.tasks.mixture.bad(self.tasks.item(*draw), error)

    def steps_of(self, train: Train) -> int:
        """Optimizer steps of a run: `train.steps` or `train.epochs`, whichever ends first."""
        ends = [train.steps] if train.steps is not None else []
        if train.epochs is not None:
            ends.append(max(1, -(-round(train.epochs * len(self.mixture)) // self.mixture.size)))
        return min(ends)

    def _micro(self, plan: Plan, forward: tuple[InSlot, ...]) -> Micro:
        examples: list[Example] = []
        bad: list[Bad] = []
        for wanted in forward:
            try:
                examples.append(self.example(plan.step, wanted))
            except BadSample as error:
                bad.append(self.bad_of(wanted.draw, error))
        ids, count = tuple(example.id for example in examples), len(examples)
        tokens = sum(self.reading.corruption.grid.tokens(size) for one in examples for size in one.bucket.sizes)
        if not examples and plan.together:
            examples = [self.reading.witness()]
        slot = forward[0].slot if forward else 0
        batch = self.reading.collate(examples) if examples else None
        return Micro(batch, count, slot, ids, tokens, tuple(bad))


def content_of(tasks: Tasks) -> str:
    """Changes with the data and with what is a task."""
    return "/".join([*tasks.numbers, tasks.mixture.fingerprint()])


def said(sample: Sample, choice: Choice) -> str:
    """What a choice of a sample's texts says."""
    if choice.left_out:
        return ""
    text = choice.text
    if text.inverse:
        assert sample.edit is not None
        return (sample.edit.inverse or {})[text.language]
    return edit.texts(sample)[text.language]
