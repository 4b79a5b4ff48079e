"""ROUGE (Lin 2004) by rouge-score: F1 of single words, of pairs, and of the longest common subsequence, in 0..1.

Of several references the best counts. Words are those of `script.words`: rouge-score's own tokenizer drops everything
but ASCII. Words are not stemmed.
"""

from collections.abc import Sequence

from qvl_sft.metrics import register_metric
from qvl_sft.metrics.script import words
from qvl_sft.prediction import Prediction


class _Words:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@register_metric("rouge1")
def rouge1(predictions: Sequence[Prediction]) -> list[float]:
    return _f1("rouge1", predictions)


@register_metric("rouge2")
def rouge2(predictions: Sequence[Prediction]) -> list[float]:
    return _f1("rouge2", predictions)


@register_metric("rougeL")
def rouge_l(predictions: Sequence[Prediction]) -> list[float]:
    return _f1("rougeL", predictions)


def _f1(kind: str, predictions: Sequence[Prediction]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], tokenizer=_Words())
    return [max(float(scorer.score(reference, p.said)[kind].fmeasure) for reference in p.accepted) for p in predictions]
