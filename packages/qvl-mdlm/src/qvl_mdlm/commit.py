"""What is written at the masks of a canvas in one step: which token, how sure, and which of them stay. Pure functions.

Shapes: M masked places, m of them in one row, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from qvl_mdlm.sampling import Gumbel, Sureness


def choose(logits: Tensor, temperature: float, uniform: Tensor, gumbel: Gumbel = "standard") -> Tensor:
    """A token drawn for each masked place (M,), from its logits (M, V) and numbers (M, V) from [0, 1) in fp64.

    standard  argmax of logits / temperature + Gumbel noise: a draw from softmax(logits / temperature)
    llada     argmax of exp(logits) / (-log u)^temperature, as LLaDA's code has it: its logarithm is temperature times
              what standard looks at, so the draw is the same; for comparison

    The numbers are fp64: fp32 cuts off the tail of the noise, which lowers the temperature (Zheng et al. 2024,
    arXiv:2409.02908).
    """
    exponential = -uniform.log()
    if gumbel == "llada":
        return (logits.double().exp() / exponential**temperature).argmax(-1)
    return (logits / temperature).sub_(exponential.to(logits.dtype).log_()).argmax(-1)


def probability_of(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each token (M,), and the logarithm (M,) of what exp(logits) (M, V) is divided by for that."""
    norm = logits.logsumexp(-1)
    return (logits.gather(-1, tokens[:, None])[:, 0] - norm).exp(), norm


def sureness(logits: Tensor, norm: Tensor, probability: Tensor, by: Sureness) -> Tensor:
    """How sure the model is of each token (M,), from `probability_of`: the higher, the earlier it is written.

    confidence  its probability
    margin      the likeliest token's probability less the second's
    entropy     less the entropy of the place, in nats
    """
    if by == "margin":
        first, second = (logits.topk(2, -1).values - norm[:, None]).exp().unbind(-1)
        return first - second
    if by == "entropy":
        return -torch.special.entr((logits - norm[:, None]).exp()).sum(-1)
    return probability


def guarded(sure: Tensor, ends: Tensor) -> Tensor:
    """Sureness (m,) with end tokens (m,) bool behind everything else."""
    return torch.where(ends, sure - sure.max() - 1e6, sure)


def ends_wait(ends: Tensor, probability: Tensor, threshold: float | None) -> bool:
    """Whether no end token is written yet: something else is not sure enough, or stands behind one of them.

    ends, probability  (m,) of a row's masked places in their order
    """
    others = (~ends).nonzero()[:, 0]
    if not len(others):
        return False
    unsure = threshold is not None and bool((probability[others] < threshold).any())
    return unsure or bool(ends[: others[-1]].any())


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


def shares(steps: int, length: int, block: int) -> list[int]:
    """Steps of each block of a canvas: at least 1, at most one for each of its tokens, `steps` together.

    Needs at least as many steps as there are blocks.
    """
    sizes = [min(block, length - start) for start in range(0, length, block)]
    spare, room = steps - len(sizes), max(1, length - len(sizes))  # beyond one each; how many could be taken
    ends = accumulate((size - 1 for size in sizes), initial=0)
    return [1 + spare * stop // room - spare * start // room for start, stop in pairwise(ends)]


def together(counts: Sequence[int], most: int) -> Iterator[slice]:
    """Cut rows into runs that have at most so many places together; a row of more is a run of its own."""
    start = total = 0
    for row, count in enumerate(counts):
        if row > start and total + count > most:
            yield slice(start, row)
            start, total = row, 0
        total += count
    yield slice(start, len(counts))
