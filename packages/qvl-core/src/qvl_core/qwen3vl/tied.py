"""The matrix that is both embedding and head gets one gradient instead of two.

Autograd makes a gradient of the whole matrix for the head and another for the lookup, nearly all zeros, and adds them.
At a vocabulary of 151,936 the second one is a tenth of a training step on a CPU (110M parameters, 550 tokens). Here the
head's gradient is put aside until the lookup's backward, which comes later, adds to it the rows that were read.

    with tied.lookup(core) as waiting:                          # None where nothing is to be gained
        states = body(ids)
    states, matrix = tied.head(states, core.lm_head.weight, waiting)
    label_nll(states, matrix, targets)

Shapes: T tokens, N labels, V vocabulary, D hidden width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

Waiting = list[Tensor]  # the head's gradient (V, D), from the head's backward until the lookup's


@contextmanager
def lookup(core: Any) -> Iterator[Waiting | None]:
    """Let the embedding's backward add to the head's gradient, which `head` then has to put aside.

    None if the two are apart, frozen, adapted, or on a GPU: there it saves little, and adding rows has no fixed order.
    """
    table, lm_head = core.get_input_embeddings(), core.lm_head
    same = type(table) is nn.Embedding and type(lm_head) is nn.Linear and table.weight is lm_head.weight
    if not (same and table.weight.requires_grad and torch.is_grad_enabled() and table.weight.device.type == "cpu"):
        yield None
        return
    waiting: Waiting = []
    hook = table.register_forward_hook(lambda table, ids, _: _Lookup.apply(table.weight, ids[0], waiting))
    try:
        yield waiting
    finally:
        hook.remove()


def head(states: Tensor, weight: Tensor, waiting: Waiting) -> tuple[Tensor, Tensor]:
    """Hidden states (N, D) and matrix (V, D) for the loss.

    One node for both: the matrix's gradient is put aside before that of the states can reach the lookup.
    """
    return cast(tuple[Tensor, Tensor], _Head.apply(states, weight, waiting))


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, waiting: Waiting) -> tuple[Tensor, Tensor]:
        ctx.waiting = waiting
        return states.view_as(states), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor, grad_weight: Tensor) -> tuple[Tensor, None, None]:
        ctx.waiting.append(grad_weight)
        return grad_states, None, None


class _Lookup(torch.autograd.Function):
    """Rows of the matrix (..., D); their gradients are added to the one put aside, which is passed on."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, waiting: Waiting) -> Tensor:
        ctx.ids, ctx.waiting = ids.flatten(), waiting  # (T,)
        return embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        whole: Tensor = ctx.waiting.pop()  # (V, D)
        return whole.index_add_(0, ctx.ids, grad.flatten(0, -2)), None, None
