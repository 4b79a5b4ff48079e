"""The loss on held-out pictures while a model learns. Noise and its level are fixed by a picture's number in its list,
so that the loss differs from one evaluation to the next, and from one run to another, by the model alone.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from qvl_core.training.seeds import mix
from qvl_data.measuring import HeldOut, evenly
from qvl_data.sources import Item, Mixture
from qvl_metaquery.batch import Array, Collate, Corruption, Drawing, DrawingSamples
from qvl_metaquery.coder import Coder
from qvl_metaquery.flow import noise_level
from qvl_metaquery.loss import drawing_losses

HELD = 64  # pictures of one forward


def fixed(corruption: Corruption, place: int) -> tuple[Array, float]:
    """Noise (C, H, W) and its level for the picture at a place of its list."""
    rng = np.random.default_rng(mix(0, "validation", place))
    noise = rng.standard_normal(corruption.shape, dtype=np.float32)
    return noise, noise_level(evenly(place), corruption.shift, corruption.times)


def validation(
    lists: Mapping[str, Mixture], taken: DrawingSamples, collate: Collate, coder: Coder, samples: int | None = None
) -> HeldOut[Drawing]:
    """Held-out lists, of which `samples` are measured before the end.

    taken  as in training, with nothing left out of a condition
    """
    return HeldOut(lists, partial(_open, taken), partial(_losses, collate, coder), HELD, samples)


def _open(taken: DrawingSamples, mixture: Mixture, item: Item, place: int) -> Drawing:
    return taken.drawing(mixture.sample(item), *fixed(taken.corruption, place))


def _losses(collate: Collate, coder: Coder, model: Any, device: torch.device, opened: Sequence[Drawing]) -> list[float]:
    losses: list[float] = drawing_losses(model, collate(opened).to(device), coder).tolist()
    return losses
