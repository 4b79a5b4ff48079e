"""How likely a model finds texts: the negative ELBO by exact-count masks with stratified times, and its standard error.

The bound of a sample is a mean over masks (see `noise`): K of them are drawn, one from each K-th of the interval of
times, so that a few say much. It is in nats per answer, its end included (and what fills its canvas up, if any).

Shapes: S samples, K draws, N masked tokens of a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qvl_core.qwen3vl.batch import Batch, by_tokens
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.loss import token_losses
from qvl_core.qwen3vl.seen import Seen, blind, given, look
from qvl_core.training.samples import Place
from qvl_mdlm.batch import Corruption
from qvl_mdlm.layout import Shape
from qvl_mdlm.noise import Noise

TOKENS = 8192  # at most in one forward, unless a sample alone has more


@dataclass(frozen=True)
class Bound:
    """Estimates of the negative ELBO of texts.

    nats     (S, K) one estimate for each sample and draw
    tokens   (S,) tokens of each sample's canvases, which its nats are of
    answers  (S,) those of its answers, their ends included: the tokens without what fills canvases up
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    answers: NDArray[np.int64]

    @property
    def of_samples(self) -> NDArray[np.float64]:
        """(S,) nats"""
        return self.nats.mean(1)

    @property
    def mean(self) -> float:
        """Nats per sample."""
        return float(self.of_samples.mean())

    @property
    def error(self) -> float | None:
        """Standard error of `mean`, over samples and masks together; there is no estimate from a single sample."""
        values = self.of_samples
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None

    @property
    def canvas_perplexity(self) -> float:
        """Upper bound of the perplexity per token of the canvas, what fills it up included."""
        return self._perplexity(self.tokens)

    @property
    def answer_perplexity(self) -> float:
        """Upper bound of the perplexity per token of the answer, its end included: a canvas is never likelier than
        the answer in it, so that the canvas's nats bound the answer's."""
        return self._perplexity(self.answers)

    def _perplexity(self, tokens: NDArray[np.int64]) -> float:
        return float(np.exp(self.of_samples.sum() / tokens.sum()))


@torch.no_grad()
def bound(
    model: Any,
    samples: Sequence[Encoded],
    shape: Shape,
    collate: Callable[[Sequence[Encoded]], Batch],
    draws: int = 16,
    seed: int = 0,
    places: Sequence[int] | None = None,
    seen: Sequence[Seen] | None = None,
) -> Bound:
    """The negative ELBO of the labelled tokens of encoded chats, each of which counts once whatever its weight.

    collate  `qvl_mdlm.batch.collation` of the model's pattern
    draws    masks of each sample (K)
    places   number of each sample, which decides its masks: those of equal numbers are common; default: 0, 1, ...
    seen     what the vision tower gave for each sample's media; default: it is asked, once for all draws
    """
    device = model.get_input_embeddings().weight.device
    corruption = Corruption(shape, Noise(masks="exact", times="stratified"), model.config.mask_token_id)
    samples = [replace(sample, weights=None) for sample in samples]
    places = range(len(samples)) if places is None else places
    seen = look(model, samples) if seen is None else seen
    nats = np.zeros((len(samples), draws))
    tokens = np.zeros(len(samples), np.int64)
    drawn = (
        (row, draw, corruption(sample, seed, Place(place, draw, draws)))
        for row, (sample, place) in enumerate(zip(samples, places, strict=True))
        for draw in range(draws)
    )
    for group in by_tokens(drawn, TOKENS, lambda one: len(one[2])):
        rows, _, noised = zip(*group, strict=True)
        batch = blind(collate(noised)).to(device)
        assert batch.weights is not None
        losses = token_losses(model, batch, given(noised, [seen[row] for row in rows], device))  # (N,)
        sums = torch.zeros(len(group), dtype=torch.float64, device=device)
        sums.index_add_(0, batch.row_of_label, losses.double() * batch.weights)
        for (row, draw, one), value in zip(group, sums.tolist(), strict=True):
            nats[row, draw] = value
            tokens[row] = one.share
    answers = [int((sample.labels != IGNORE).sum()) for sample in samples]
    return Bound(nats, tokens, np.array(answers, np.int64))
