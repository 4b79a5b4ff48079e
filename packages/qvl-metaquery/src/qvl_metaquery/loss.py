"""The loss of a batch: prompts to conditions, pictures to latents, noise on them, and the direction predicted."""

from typing import Any

from torch import Tensor

from qvl_core.training.parts import Loss
from qvl_metaquery.batch import DrawingBatch
from qvl_metaquery.coder import Coder
from qvl_metaquery.flow import between, flow_loss


def drawing_loss(model: Any, batch: DrawingBatch, coder: Coder) -> Loss:
    """The flow-matching loss, summed over pictures; model is a `MetaQuery`."""
    return Loss((drawing_losses(model, batch, coder) * batch.shares).sum(), {})


def drawing_losses(model: Any, batch: DrawingBatch, coder: Coder) -> Tensor:
    """(B,) the flow-matching loss of each picture."""
    latents = batch.pictures.float() if batch.coded else coder.encode(batch.pictures)  # (B, C, H, W)
    conditions = model.condition(model.read(batch.prompts.inputs()))[batch.prompt_of]  # (B, N, D)
    noisy = between(latents, batch.noise, batch.levels)
    velocity = model.velocity(noisy, batch.levels, conditions)
    return flow_loss(velocity, latents, batch.noise)
