"""One call of the transformer, as diffusers' pipelines make it.

Shapes: B samples, N tokens of a target and M of its sources, of F features; L tokens of a text, of width D.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qvl_edit.cut import Bucket
from qvl_edit.packing import shapes


def velocity(
    transformer: Any,
    noisy: Tensor,
    sources: Sequence[Tensor],
    told: Tensor,
    told_mask: Tensor | None,
    levels: Tensor,
    bucket: Bucket,
    scale: int,
) -> Tensor:
    """(B, N, F): the direction from picture to noise at targets with noise of `levels` (B,) in (0, 1].

    noisy           (B, N, F)
    sources         (B, M, F) of each source
    told, its mask  (B, L, D) and (B, L), true where there is a token; None where nothing is padded
    bucket, scale   sizes of all samples, in pixels, of which `scale` are a latent place along a side
    """
    dtype = transformer.dtype  # the first parameter may be in fewer bits
    predicted: Tensor = transformer(
        hidden_states=torch.cat([noisy, *sources], 1).to(dtype),
        encoder_hidden_states=told.to(dtype),
        encoder_hidden_states_mask=told_mask,
        timestep=levels.to(dtype),
        img_shapes=shapes([bucket] * len(noisy), scale),
        return_dict=False,
    )[0]
    return predicted[:, : noisy.shape[1]]
