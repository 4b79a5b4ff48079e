"""The loss of a batch: pictures to latents, noise on the targets, and the direction that is predicted of it."""

from typing import Any

from torch import Tensor

from qvl_core.training.parts import Loss
from qvl_edit.batch import EditBatch
from qvl_edit.flow import between, velocity_losses
from qvl_edit.latents import Vae
from qvl_edit.model import Call, Given


def edit_loss(transformer: Any, batch: EditBatch, vae: Vae, call: Call) -> Loss:
    """The flow-matching loss, summed over targets, of which each counts the same, whatever its size."""
    return Loss((edit_losses(transformer, batch, vae, call) * batch.shares).sum(), {})


def edit_losses(transformer: Any, batch: EditBatch, vae: Vae, call: Call) -> Tensor:
    """(B,) the flow-matching loss of each target."""
    code = vae.normed if batch.coded else vae.encode
    target, *sources = (call.grid.pack(code(each)) for each in batch.pictures)  # (B, N, F)
    noisy = between(target, batch.noise, batch.levels)
    given = Given(sources, batch.told, batch.told_mask, batch.bucket)
    predicted = call(transformer, noisy, batch.levels, given)
    return velocity_losses(predicted, target, batch.noise)
