"""What of a swapped model learns. Recipes say it with `tune`; this is for loops of one's own."""

from typing import Any

import torch

from qvl_vision.checkpoint import swapped_config
from qvl_vision.encoders import NativeEncoder


def freeze(model: Any, *, encoder: bool = True, merger: bool = False, llm: bool = True) -> Any:
    """Freeze parts of a swapped model, let gradients into the others, in place.

    encoder  also keeps it in evaluation mode: a frozen encoder gives the same features in training
    merger   the merger and the DeepStack mergers
    llm      language model, embeddings and head

    Of an encoder that learns, weights that its tokens do not depend on (mask tokens, pooling heads, blocks after the
    feature layer) stay frozen: DDP waits for the gradient of every weight.
    """
    swapped_config(model)
    visual = model.model.visual
    model.requires_grad_(not llm)
    visual.encoder.requires_grad_(not encoder)
    for part in (visual.merger, visual.deepstack_merger_list):
        part.requires_grad_(not merger)
    if not encoder:
        freeze_unused(model)
    return model


def freeze_unused(model: Any) -> list[str]:
    """Freeze the encoder's trainable weights that its tokens do not depend on, and return their names."""
    encoder = model.model.visual.encoder
    unused = unused_weights(model.model.visual)
    for name, parameter in encoder.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
    return unused


@torch.enable_grad()
def unused_weights(visual: Any) -> list[str]:
    """Names of the encoder's weights through which no gradient flows, found by sending a picture through it."""
    config, encoder = visual.config, visual.encoder
    first = next(encoder.parameters())
    layers = tuple(config.deepstack_visual_indexes)
    # Beside frozen 16-bit weights, adapters are fp32: autocast, as in training.
    with torch.autocast(first.device.type, first.dtype, enabled=first.dtype != torch.float32):
        if isinstance(encoder, NativeEncoder):
            side, p, t = config.spatial_merge_size, config.patch_size, config.temporal_patch_size
            pixels = torch.zeros(side**2, 3 * t * p * p, device=first.device, dtype=first.dtype)
            states = encoder(pixels, torch.tensor([[1, side, side]], device=first.device))
        else:
            size = config.image_size or config.encoders[0]["size"]
            states = encoder(torch.zeros(1, 3, *size, device=first.device, dtype=first.dtype), layers)
    wanted = [(name, parameter) for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    total: Any = sum(state.float().pow(2).sum() for state in states)
    gradients = torch.autograd.grad(total, [parameter for _, parameter in wanted], allow_unused=True)
    return [name for (name, _), gradient in zip(wanted, gradients, strict=True) if gradient is None]
