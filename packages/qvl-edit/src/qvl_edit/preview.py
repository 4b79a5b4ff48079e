"""Pictures drawn while a model learns: the same few instructions each time, from the same noise, with their targets."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from qvl_data.drawing.calls import pictures
from qvl_data.drawing.previews import first_ones, write_preview
from qvl_data.sources import Item, Mixture
from qvl_edit.draw import Conditions, draw
from qvl_edit.geometry import numbers
from qvl_edit.latents import Vae
from qvl_edit.model import Call
from qvl_edit.questions import sources_of, target_of
from qvl_edit.sampling import Sampling
from qvl_edit.slots import Reading, said
from qvl_edit.texts import Choice, directed

log = logging.getLogger(__name__)
SHOWN = 4  # instructions


@dataclass(frozen=True)
class Prompt:
    """An instruction with its pictures, as training has them, and all that its picture is drawn from."""

    text: str
    sources: tuple[Image.Image, ...]
    target: Image.Image
    conditions: Conditions


@dataclass
class Preview:
    """`Parts.preview`.

    mixture   whose first samples are drawn
    sampling  its negative text is stored with the samples
    """

    mixture: Mixture
    reading: Reading
    vae: Vae
    call: Call
    sampling: Sampling

    def __call__(self, model: nn.Module, folder: Path, step: int) -> None:
        """Draw all prompts, and write them to `folder`. Nothing that cannot be drawn ends a run."""
        each = [prompt.conditions for prompt in self.prompts]
        drawn = draw(model, self.call, self.vae, each, self.reading.corruption.shift, self.sampling)
        for number, (prompt, pixels) in enumerate(zip(self.prompts, drawn, strict=True)):
            if not bool(pixels.isfinite().all()):
                log.warning("step %d: no picture of %r: its numbers are not finite", step, prompt.text)
                continue
            (picture,) = pictures(pixels[None].cpu().numpy())
            write_preview(folder, step, number, prompt.text, prompt.sources, picture, prompt.target)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The first samples."""
        return first_ones(self.mixture, SHOWN, self._read)

    def _read(self, item: Item) -> tuple[object, Prompt]:
        sample = self.mixture.sample(item)
        choice = Choice(self.reading.texts(sample)[0])
        bucket = self.reading.bucket(sample, choice.text)
        target, *sources = self.reading.pictures(sample, choice.text, bucket)
        _, places = directed(choice.text, target_of(sample), sources_of(sample))
        told = torch.cat(self.reading.told(sample, places, said(sample, choice)))
        negative = self.sampling.negative
        untold = torch.cat(self.reading.told(sample, places, negative)) if self.sampling.guided else None
        conditions = Conditions(told, untold, bucket, tuple(map(numbers, sources)), seed=0)
        return item, Prompt(said(sample, choice), tuple(sources), target, conditions)
