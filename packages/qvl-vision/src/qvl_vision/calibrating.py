"""Make a new merger's tokens as large as text embeddings: a first step that neither drowns nor shouts.

A random merger gives tokens of deviation about 0.5, text embeddings have 0.02 to 0.03.
"""

from typing import Any

import torch
from torch import nn

from qvl_core.errors import BadInput
from qvl_data.example.pictures import PHOTOS, opened
from qvl_vision.processing import as_batch


@torch.no_grad()
def calibrate(model: Any, processor: Any, images: list[Any] | None = None) -> float:
    """Scale the last linear layer of each merger, in place, and return the factor of the first.

    images  RGB pictures to measure on; default: the crops that qvl-data carries

    Raises BadInput for a merger without a linear layer.
    """
    pixels, grid = as_batch(processor, images or [opened(photo.name).convert("RGB") for photo in PHOTOS])
    visual = model.model.visual
    wanted = model.get_input_embeddings().weight.float().std()
    out = visual(pixels.to(visual.device, visual.dtype), grid.to(visual.device))
    factors = []
    mergers = [visual.merger, *visual.deepstack_merger_list]
    for merger, tokens in zip(mergers, [out.pooler_output, *out.deepstack_features], strict=True):
        last = [module for module in merger.modules() if isinstance(module, nn.Linear)]
        if not last:
            raise BadInput("calibrate: the merger has no linear layer to scale; leave it out.")
        factor = float(wanted / tokens.float().std())
        for parameter in last[-1].parameters():
            parameter.mul_(factor)
        factors.append(factor)
    return factors[0]
