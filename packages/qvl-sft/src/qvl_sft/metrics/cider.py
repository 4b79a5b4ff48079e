"""CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726), the metric of picture captions, in 0..10.

Cosine of tf-idf vectors of n-grams, n = 1..4, where no n-gram counts more often than the reference has it, times a
Gaussian (sigma 6) of the difference in length; averaged over n and over the references. An n-gram is rare or common
by the references of the very corpus that is evaluated, so figures of different corpora do not compare, and a single
sample has no figure but 0. Words are those of `script.words`, in place of the Java tokenizer of the paper's code.

As computed by github.com/tylin/coco-caption (cider_scorer.py of vrama91/cider).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qvl_sft.metrics import register_metric
from qvl_sft.metrics.script import words
from qvl_sft.prediction import Prediction

ORDERS = 4
SIGMA = 6.0

Gram = tuple[str, ...]


@register_metric("cider")
def cider(predictions: Sequence[Prediction]) -> list[float]:
    """0..10 for each answer."""
    references = [[_grams(words(text)) for text in p.accepted] for p in predictions]
    seen: Counter[Gram] = Counter()  # samples that have an n-gram in a reference
    for texts in references:
        seen.update({gram for grams in texts for gram in grams})
    samples = len(predictions)
    scores = []
    for p, texts in zip(predictions, references, strict=True):
        answer = _vector(_grams(words(p.said)), seen, samples)
        scores.append(10 * sum(_similarity(answer, _vector(grams, seen, samples)) for grams in texts) / len(texts))
    return scores


def _grams(tokens: Sequence[str]) -> Counter[Gram]:
    """How often each n-gram occurs, n = 1..4."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1))


@dataclass(frozen=True)
class _Vector:
    """tf-idf of a text by n - 1, its norms, and its length, which the paper's code counts in pairs of words."""

    weights: Sequence[Mapping[Gram, float]]
    norms: Sequence[float]
    length: int


def _vector(grams: Mapping[Gram, int], seen: Mapping[Gram, int], samples: int) -> _Vector:
    weights: list[dict[Gram, float]] = [{} for _ in range(ORDERS)]
    for gram, count in grams.items():
        weights[len(gram) - 1][gram] = count * math.log(samples / max(1, seen.get(gram, 0)))
    norms = [math.sqrt(sum(weight**2 for weight in order.values())) for order in weights]
    return _Vector(weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2))


def _similarity(answer: _Vector, reference: _Vector) -> float:
    """0..1."""
    total = 0.0
    orders = zip(answer.weights, reference.weights, answer.norms, reference.norms, strict=True)
    for ours, theirs, norm, other_norm in orders:
        shared = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
        if norm and other_norm:
            total += shared / (norm * other_norm)
    return total / ORDERS * math.exp(-((answer.length - reference.length) ** 2) / (2 * SIGMA**2))
