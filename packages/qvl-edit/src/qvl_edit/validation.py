"""The loss on held-out samples while a model learns. Noise, its level and the text are fixed by a sample's number in
its list, so that the loss differs from one evaluation to the next, and from one run to another, by the model alone.

Levels are the multiples of the golden ratio, without their whole parts: any first ones of them lie evenly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from qvl_core.run import RunFolder
from qvl_core.training.world import World
from qvl_data.measuring import Judged, measure
from qvl_data.sources import Item, Mixture
from qvl_edit.batch import Example
from qvl_edit.latents import Vae
from qvl_edit.loss import edit_losses
from qvl_edit.slots import Reading
from qvl_edit.texts import Choice
from qvl_edit.times import level_at, noise_of

GOLDEN = (5**0.5 - 1) / 2
HELD = 16  # samples that are opened together; each is a forward of its own, for their sizes differ


@dataclass(frozen=True)
class Validation:
    """Lists of held-out samples, of which the loss is measured: validation_loss and, at the end, test_loss.

    samples  of each list, before the end
    """

    lists: Mapping[str, Mixture]
    reading: Reading
    vae: Vae
    samples: int | None = None

    def measure(self, model: nn.Module, world: World, final: bool, run: RunFolder) -> dict[str, float]:
        """Figures by name, the same on every process. Samples that cannot be used are left out and counted."""
        asked = _Asked(self, model, world.device)
        return measure(asked, self.lists, world, final, run, samples=None if final else self.samples, held=HELD)


@dataclass
class _Asked:
    """A model whose loss is measured, for `qvl_data.measuring`."""

    validation: Validation
    model: Any
    device: torch.device

    def open(self, mixture: Mixture, item: Item, place: int) -> Example:
        reading = self.validation.reading
        sample = mixture.sample(item)
        texts = reading.texts(sample)
        choice = Choice(texts[place % len(texts)])
        bucket = reading.bucket(sample, choice.text)
        tokens = reading.corruption.tokens(bucket)
        level = level_at((place + 0.5) * GOLDEN % 1, reading.corruption.times)
        noise = noise_of(0, 0, place, (tokens, reading.corruption.features))
        return reading.example(sample, choice, bucket, noise, reading.corruption.shift(level, tokens))

    @torch.no_grad()
    def predict(self, name: str, opened: Sequence[Example]) -> list[float]:
        batches = (self.validation.reading.collate([example]).to(self.device) for example in opened)
        return [edit_losses(self.model, batch, self.validation.vae).item() for batch in batches]

    def judge(self, name: str, predictions: Sequence[float], places: Sequence[int]) -> Judged[float]:
        return Judged({f"{name}_loss": float(np.mean(predictions))} if predictions else {})
