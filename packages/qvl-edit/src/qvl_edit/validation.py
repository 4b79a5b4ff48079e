"""The loss on held-out samples while a model learns. Noise, its level and the text are fixed by a sample's number in
its list, so that the loss differs from one evaluation to the next, and from one run to another, by the model alone.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from qvl_data.measuring import HeldOut, evenly
from qvl_data.sources import Item, Mixture
from qvl_edit.batch import Example
from qvl_edit.latents import Vae
from qvl_edit.loss import edit_losses
from qvl_edit.model import Call
from qvl_edit.slots import Reading
from qvl_edit.texts import Choice
from qvl_edit.times import level_at, noise_of

HELD = 16  # samples that are opened together; each is a forward of its own, for their sizes differ


def validation(
    lists: Mapping[str, Mixture], reading: Reading, vae: Vae, call: Call, samples: int | None = None
) -> HeldOut[Example]:
    """Held-out lists, of which `samples` are measured before the end."""
    return HeldOut(lists, partial(_open, reading), partial(_losses, reading, vae, call), HELD, samples, in_step=True)


def _open(reading: Reading, mixture: Mixture, item: Item, place: int) -> Example:
    sample = mixture.sample(item)
    texts = reading.texts(sample)
    choice = Choice(texts[place % len(texts)])
    bucket = reading.bucket(sample, choice.text)
    tokens = reading.corruption.tokens(bucket)
    level = level_at(evenly(place), reading.corruption.times)
    noise = noise_of(0, 0, place, (tokens, reading.corruption.features))
    return reading.example(sample, choice, bucket, noise, reading.corruption.shift(level, tokens))


@torch.no_grad()
def _losses(
    reading: Reading, vae: Vae, call: Call, model: Any, device: torch.device, opened: Sequence[Example]
) -> list[float]:
    batches = (reading.collate([example]).to(device) for example in opened)
    return [edit_losses(model, batch, vae, call).item() for batch in batches]
