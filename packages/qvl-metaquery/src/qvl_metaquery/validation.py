"""The loss on held-out pictures while a model learns. Noise and its level are fixed by a picture's number in its list,
so that the loss differs from one evaluation to the next, and from one run to another, by the model alone.

Levels are the multiples of the golden ratio, without their whole parts: any first ones of them lie evenly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from qvl_core.run import RunFolder
from qvl_core.training.seeds import mix
from qvl_core.training.world import World
from qvl_data.measuring import Judged, measure
from qvl_data.sources import Item, Mixture
from qvl_metaquery.batch import Array, Collate, Corruption, Drawing, DrawingSamples
from qvl_metaquery.coder import Coder
from qvl_metaquery.flow import noise_level
from qvl_metaquery.loss import drawing_losses

GOLDEN = (5**0.5 - 1) / 2
HELD = 64  # pictures of one forward


def fixed(corruption: Corruption, place: int) -> tuple[Array, float]:
    """Noise (C, H, W) and its level for the picture at a place of its list."""
    rng = np.random.default_rng(mix(0, "validation", place))
    noise = rng.standard_normal(corruption.shape, dtype=np.float32)
    return noise, noise_level((place + 0.5) * GOLDEN % 1, corruption.shift, corruption.times)


@dataclass(frozen=True)
class Validation:
    """Lists of held-out samples, of which the loss is measured: validation_loss and, at the end, test_loss.

    taken    as in training, with nothing left out of a condition
    samples  of each list, before the end
    """

    lists: "dict[str, Mixture]"
    taken: DrawingSamples
    collate: Collate
    coder: Coder
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

    def open(self, mixture: Mixture, item: Item, place: int) -> Drawing:
        taken = self.validation.taken
        return taken.drawing(mixture.sample(item), *fixed(taken.corruption, place))

    def predict(self, name: str, opened: Sequence[Drawing]) -> list[float]:
        batch = self.validation.collate(opened).to(self.device)
        losses: list[float] = drawing_losses(self.model, batch, self.validation.coder).tolist()
        return losses

    def judge(self, name: str, predictions: Sequence[float], places: Sequence[int]) -> Judged[float]:
        return Judged({f"{name}_loss": float(np.mean(predictions))} if predictions else {})
