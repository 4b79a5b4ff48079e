"""What is written at the masks of a canvas in one step: which token, how sure, and which of them stay. Pure functions.

Shapes: M masked places of one row, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

Remasking = Literal["confidence", "margin", "entropy", "random"]
Gumbel = Literal["standard", "llada"]


def choose(logits: Tensor, temperature: float, generator: torch.Generator, gumbel: Gumbel = "standard") -> Tensor:
    """A token for each masked place (M,), from its logits (M, V): the likeliest, or drawn at a temperature.

    standard  argmax of logits / temperature + Gumbel noise, a draw from softmax(logits / temperature)
    llada     argmax of exp(logits) / (-log u)^temperature, as LLaDA has it (facts: not a draw from that softmax); for
              comparison
    """
    if temperature == 0:
        return logits.argmax(-1)
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300).to(logits.device)
    wide = logits.double()
    if gumbel == "llada":
        return (wide - temperature * (-uniform.log()).log()).argmax(-1)
    return (wide / temperature - (-uniform.log()).log()).argmax(-1)


def sureness(logits: Tensor, tokens: Tensor, by: Remasking, generator: torch.Generator) -> Tensor:
    """How sure the model is of each token (M,): the higher, the earlier it is written.

    confidence  its probability
    margin      the likeliest token's probability less the second's
    entropy     less the entropy of the place, in nats
    random      drawn
    """
    if by == "random":
        return torch.rand(len(tokens), generator=generator, dtype=torch.float64).to(logits.device)
    probabilities = logits.double().softmax(-1)  # (M, V)
    if by == "confidence":
        return probabilities.gather(-1, tokens[:, None])[:, 0]
    if by == "margin":
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return first - second
    return torch.special.xlogy(probabilities, probabilities).sum(-1)


def guarded(sure: Tensor, ends: Tensor) -> Tensor:
    """Sureness with end tokens (M,) bool behind everything else."""
    return torch.where(ends, sure - sure.max() - 1e6, sure)


def most_sure(sure: Tensor, count: int) -> Tensor:
    """The places (count,) that the model is surest of; of equal ones the first."""
    return sure.argsort(descending=True, stable=True)[:count]


def above(sure: Tensor, probability: Tensor, threshold: float) -> Tensor:
    """All places whose token has at least this probability, and the surest (Fast-dLLM, arXiv:2505.22618)."""
    order = most_sure(sure, len(sure))
    passed = probability[order] >= threshold
    passed[0] = True
    return order[passed]


def by_factor(sure: Tensor, probability: Tensor, factor: float) -> Tensor:
    """The n surest places, the largest n for which (n + 1)(1 - p_n) < factor, at least one (Fast-dLLM, theorem 1)."""
    order = most_sure(sure, len(sure))
    ranks = torch.arange(1, len(order) + 1, device=order.device)
    held = (ranks + 1) * (1 - probability[order]) < factor
    count = int(held.cumprod(0).sum())
    return order[: max(1, count)]


def share(masked: int, steps: int) -> int:
    """How many of the places that are still masked to write, with so many steps left: as even as can be."""
    return -(-masked // max(1, steps))
