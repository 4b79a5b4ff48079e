"""How likely a model finds texts: the negative ELBO by exact-count masks with stratified times, and its standard error.

The bound of a sample is a mean over masks (see `noise`): K of them are drawn, one from each K-th of the interval of
times, so that a few say much. It is in nats per answer, its end included (and what fills its canvas up, if any).

Shapes: S samples, K draws, N masked tokens of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qvl_core.qwen3vl.batch import Batch
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.loss import token_losses
from qvl_core.training.samples import Place
from qvl_mdlm.batch import Corruption, Noised
from qvl_mdlm.layout import Shape
from qvl_mdlm.noise import Noise

TOKENS = 8192  # at most in one forward, unless a sample alone has more


@dataclass(frozen=True)
class Bound:
    """Estimates of the negative ELBO of texts.

    nats    (S, K) one estimate for each sample and draw
    tokens  (S,) tokens that each sample's nats are of
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def of_samples(self) -> NDArray[np.float64]:
        """(S,) nats"""
        return self.nats.mean(1)

    @property
    def mean(self) -> float:
        """Nats per sample."""
        return float(self.of_samples.mean())

    @property
    def error(self) -> float:
        """Standard error of `mean`, over samples and masks together; nan of a single sample."""
        values = self.of_samples
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")

    @property
    def perplexity(self) -> float:
        """Upper bound of the perplexity per token of the canvas, what fills it up included."""
        return float(np.exp(self.nats.mean(1).sum() / self.tokens.sum()))


@torch.no_grad()
def bound(
    model: Any,
    samples: Sequence[Encoded],
    shape: Shape,
    collate: Callable[[Sequence[Encoded]], Batch],
    draws: int = 16,
    seed: int = 0,
    places: Sequence[int] | None = None,
) -> Bound:
    """The negative ELBO of the labelled tokens of encoded chats.

    collate  `qvl_mdlm.batch.collation` of the model's pattern
    draws    masks of each sample (K)
    places   number of each sample, which decides its masks: those of equal numbers are common; default: 0, 1, ...
    """
    device = model.get_input_embeddings().weight.device
    corruption = Corruption(shape, Noise(masks="exact", times="stratified"), model.config.mask_token_id)
    nats = np.zeros((len(samples), draws))
    tokens = np.zeros(len(samples), np.int64)
    for group in _by_tokens(
        (place, draw, corruption(sample, seed, Place(place if places is None else places[place], draw, draws)))
        for place, sample in enumerate(samples)
        for draw in range(draws)
    ):
        batch = collate([noised for _, _, noised in group]).to(device)
        assert batch.weights is not None
        weighted = token_losses(model, batch).double() * batch.weights  # (N,)
        sums = torch.zeros(len(group), dtype=torch.float64, device=device).index_add_(0, batch.row_of_label, weighted)
        for (place, draw, noised), value in zip(group, sums.tolist(), strict=True):
            nats[place, draw] = value
            tokens[place] = noised.share
    return Bound(nats, tokens)


def _by_tokens(noised: Iterator[tuple[int, int, Noised]]) -> Iterator[list[tuple[int, int, Noised]]]:
    """Runs of samples of at most TOKENS tokens together; a longer sample stands alone."""
    group: list[tuple[int, int, Noised]] = []
    for one in noised:
        if group and sum(len(sample) for _, _, sample in group) + len(one[2]) > TOKENS:
            yield group
            group = []
        group.append(one)
    if group:
        yield group
