"""Operations of a piece of work: torch's counter, but grouped convolutions for what they are.

    with counting() as counter:
        loss(model, batch).backward()
    counter.get_total_flops()                             # also on the meta device

torch takes the weight gradient of a grouped convolution for that of one group: of Sana's depthwise ones, 11,200 times
too much.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def counting() -> FlopCounterMode:
    """A counter that prints nothing."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward})


def _backward(
    grad: Any,
    taken: Any,
    weight: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: list[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Each gradient takes what the forward took: every place with every weight; shapes of tensors are given."""
    places = (taken if transposed else grad)[2:]
    once: int = 2 * grad[0] * math.prod(places) * math.prod(weight)
    return once * sum(wanted[:2])
