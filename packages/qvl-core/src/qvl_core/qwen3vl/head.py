"""The vocabulary head and its cross-entropy, on label rows only and a bounded chunk of them at a time.

At a vocabulary of 151,936 the logits are the largest tensor of a training step: 1024 rows take 0.6 GB, their gradient
as much again. Here a chunk of rows at a time is turned into logits, then into its loss and, in the same pass, into the
gradients of the hidden states and of the weight (if it is trained); the chunk's buffer then serves the next. The idea
is that of Liger and of cut cross-entropy (Wijmans et al. 2024, arXiv:2411.09009), in plain torch for every device.

Shapes: N labels, D hidden width, V vocabulary, C rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from qvl_core.qwen3vl.quantize import is_low_bit

CHUNK = 2**25  # logits held at a time: 128 MiB in fp32, 220 rows at the real vocabulary


def head_nll(head: Any, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`label_nll` through an lm_head; one that is more than a matrix (LoRA, fewer bits) is recomputed by chunks."""
    if isinstance(head, nn.Linear) and head.bias is None and not is_low_bit(head.weight):
        return label_nll(hidden, head.weight, targets, weights)

    def chunk_nll(rows: Tensor, labels: Tensor) -> Tensor:
        logits = head(rows)
        return cross_entropy(logits.to(_statistics(logits)), labels, reduction="none")

    size = max(1, CHUNK // head.out_features)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    nll = torch.cat([checkpoint(chunk_nll, rows, labels, use_reentrant=False) for rows, labels in chunks])  # (N,)
    return (nll if weights is None else nll * weights).sum(), nll.detach()


def full_nll(head: Any, hidden: Tensor, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The same total from the logits of all hidden states (R, D) at once; `rows` (N,) are those that predict a label.

    For comparison: the logits and their gradient take V numbers for each token.
    """
    labels = targets.new_full((len(hidden),), -100).index_copy(0, rows, targets)
    logits = head(hidden)  # (R, V)
    nll = cross_entropy(logits.to(_statistics(logits)), labels, reduction="none").index_select(0, rows)  # (N,)
    return (nll if weights is None else nll * weights).sum()


def label_nll(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in nats of `targets` under softmax(hidden @ weight.T).

    hidden  (N, D)  rows that predict a label
    weight  (V, D)  the head's matrix, tied to the embedding or not
    targets (N,)    token ids
    weights (N,)    factor of each label in the total; default 1

    Returns the weighted total, a scalar with gradients for hidden and weight, and the nll of each label (N,), without.
    Products are computed in the autocast type or the weight's, statistics and total in fp32 (fp64 for fp64).
    """
    if not torch.is_grad_enabled():  # needs_input_grad does not know
        hidden, weight = hidden.detach(), weight.detach()
    total, nll = _LabelNLL.apply(hidden, weight, targets, weights)
    return total, nll


class _LabelNLL(torch.autograd.Function):
    """Gradients are made in the forward, while a chunk's softmax is at hand, and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            rows, matrix = hidden.to(dtype), weight.to(dtype)
            nll = rows.new_empty(len(rows), dtype=_statistics(rows))  # (N,)
            factor = torch.ones_like(nll) if weights is None else weights.to(nll.dtype)  # (N,)
            scale = _scale(factor, dtype)
            grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            blank = torch.empty_like if len(rows) else torch.zeros_like
            grad_weight = blank(weight) if ctx.needs_input_grad[1] else None
            size = max(1, CHUNK // len(weight))
            for chunk in (slice(start, start + size) for start in range(0, len(rows), size)):
                nll[chunk], grad = _nll_and_softmax(rows[chunk] @ matrix.T, targets[chunk])
                if grad_hidden is not None or grad_weight is not None:
                    grad.scatter_add_(1, targets[chunk, None], grad.new_full((len(grad), 1), -1))  # softmax - onehot
                    grad = grad.mul_((factor[chunk] * scale)[:, None]).to(dtype)  # (C, V) of the total by the logits
                if grad_hidden is not None:
                    grad_hidden[chunk] = (grad @ matrix).to(nll.dtype) / scale
                if grad_weight is not None:
                    _add_product(grad_weight, grad, rows[chunk], first=chunk.start == 0)
                del grad  # before the next chunk's logits are made
            if grad_weight is not None and dtype == torch.float16:
                grad_weight.div_(scale)
        ctx.gradients = grad_hidden, grad_weight  # ours alone, so that the backward may scale them in place
        ctx.mark_non_differentiable(nll)
        return (nll * factor).sum(), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("label_nll cannot be differentiated twice: its gradients are scaled in place.")
        grad_hidden, grad_weight = (None if grad is None else grad.mul_(grad_total) for grad in gradients)
        return grad_hidden, grad_weight, None, None


def _nll_and_softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss (C,) and softmax (C, V) of logits (C, V), whose buffer is used up."""
    logits = logits.to(_statistics(logits))
    top = logits.amax(1, keepdim=True)
    chosen = logits.gather(1, targets[:, None])
    exp = logits.sub_(top).exp_()
    norm = exp.sum(1, keepdim=True)
    return (norm.log() + top - chosen).squeeze(1), exp.div_(norm)


def _add_product(total: Tensor, grad: Tensor, rows: Tensor, first: bool) -> None:
    """total (V, D) = or += grad (C, V).T @ rows (C, D), without a second (V, D) tensor where the types differ."""
    if total.dtype == rows.dtype:
        total.addmm_(grad.T, rows, beta=0 if first else 1)
        return
    size = max(1, CHUNK // total.shape[1])
    for block, part in zip(total.split(size), grad.split(size, dim=1), strict=True):
        product = part.T @ rows
        block.copy_(product) if first else block.add_(product)


def _scale(factor: Tensor, dtype: torch.dtype) -> Tensor | float:
    """Keeps the gradients of the logits inside fp16, where 1 / 151,936 would lose most of its digits."""
    if dtype != torch.float16 or not len(factor):
        return 1.0
    return 1024 / factor.abs().amax().clamp(min=1e-30)


def _statistics(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
