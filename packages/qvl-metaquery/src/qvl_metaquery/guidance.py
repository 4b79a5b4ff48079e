"""Guidance: several predictions of one step, of which each knows less of the condition, made into one. Pure functions.

    kinds = branches(image_guidance, pictured=True)          # which conditions are needed, in this order
    velocity = guided(predictions, guidance, image_guidance)

Shapes: K branches, B pictures of C x H x W.
"""

from typing import Literal

from torch import Tensor

Branch = Literal["unconditional", "pictures", "full"]


def branches(guidance: float, image_guidance: float, pictured: bool) -> tuple[Branch, ...]:
    """The conditions that a step needs, the poorest first.

    full           the prompt and its pictures
    pictures       the negative prompt and the pictures
    unconditional  the negative prompt and, in place of each picture, a black one

    Pictures are guided apart above an image guidance of 1 (Brooks et al. 2023, arXiv:2211.09800); otherwise they are
    part of every condition.
    """
    if pictured and image_guidance > 1:
        return ("unconditional", "pictures", "full")
    if guidance == 1:
        return ("full",)
    return ("pictures" if pictured else "unconditional", "full")


def guided(predictions: Tensor, guidance: float, image_guidance: float) -> Tensor:
    """(B, C, H, W) of predictions (K, B, C, H, W) in the order of `branches`.

    One branch is itself; of two, u + g (c - u); of three, u + gi (t - u) + g (c - t).
    """
    if len(predictions) == 1:
        return predictions[0]
    if len(predictions) == 2:
        poor, full = predictions
        return poor + guidance * (full - poor)
    poor, pictures, full = predictions
    return poor + image_guidance * (pictures - poor) + guidance * (full - pictures)
