"""Pictures drawn while a model learns: the same few instructions each time, from the same noise, with their targets."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from qvl_core.training.world import World
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
    world     among whose processes they are dealt
    """

    mixture: Mixture
    reading: Reading
    vae: Vae
    call: Call
    sampling: Sampling
    world: World

    def __call__(self, model: nn.Module, folder: Path, step: int) -> None:
        """Draw all prompts, and write them to `folder`; of one whose numbers are not finite that is said. Raises what
        torch does where memory does not suffice, on all processes."""
        shares = self.world.gather(self._drawn(model))
        if any(share is None for share in shares):
            raise torch.OutOfMemoryError
        if self.world.rank == 0:
            self._write({place: pixels for share in shares for place, pixels in share.items()}, folder, step)

    def _drawn(self, model: nn.Module) -> dict[int, Tensor] | None:
        """Pixels of this process's prompts by place; None if memory does not suffice. All processes draw equally many,
        one at a time, so that they call the model equally often; a prompt may be drawn twice."""
        count, size = len(self.prompts), self.world.size
        places = [(self.world.rank + turn * size) % count for turn in range(ceil(count / size))]
        each = [self.prompts[place].conditions for place in places]
        batch = None if size == 1 else 1
        try:
            drawn = draw(model, self.call, self.vae, each, self.reading.corruption.shift, self.sampling, batch=batch)
        except torch.OutOfMemoryError:
            return None
        return {place: pixels.cpu() for place, pixels in zip(places, drawn, strict=True)}

    def _write(self, drawn: Mapping[int, Tensor], folder: Path, step: int) -> None:
        for number, prompt in enumerate(self.prompts):
            pixels = drawn[number]
            if not bool(pixels.isfinite().all()):
                log.warning("step %d: no picture of %r: its numbers are not finite", step, prompt.text)
                continue
            (picture,) = pictures(pixels[None].numpy())
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
