"""ROUGE (Lin 2004) by rouge-score: F1 of single words, of pairs, and of the longest common subsequence, in 0..1.

Of several references the best counts. Words are those of `script.words`: rouge-score's own tokenizer drops everything
but ASCII. Words are not stemmed. The subsequence is found here, with the same result: the library fills a table of all
pairs of words, in 3 s for two texts of 4000.
"""

from collections.abc import Callable, Sequence

from qvl_sft.metrics import register_metric
from qvl_sft.metrics.script import words
from qvl_sft.prediction import Prediction


class _Words:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@register_metric("rouge1")
def rouge1(predictions: Sequence[Prediction]) -> list[float]:
    return _best(_shared_words("rouge1"), predictions)


@register_metric("rouge2")
def rouge2(predictions: Sequence[Prediction]) -> list[float]:
    return _best(_shared_words("rouge2"), predictions)


@register_metric("rougeL")
def rouge_l(predictions: Sequence[Prediction]) -> list[float]:
    return _best(_in_order, predictions)


def subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): a cleared bit of `row` is a word of
    `one` at which the length rises.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    every = row = (1 << len(one)) - 1
    for word in other:
        equal = row & places.get(word, 0)
        row = (row + equal | row - equal) & every
    return len(one) - row.bit_count()


def _best(f1: Callable[[str, str], float], predictions: Sequence[Prediction]) -> list[float]:
    return [max(f1(reference, p.said) for reference in p.accepted) for p in predictions]


def _shared_words(kind: str) -> Callable[[str, str], float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], tokenizer=_Words())
    return lambda reference, answer: float(scorer.score(reference, answer)[kind].fmeasure)


def _in_order(reference: str, answer: str) -> float:
    wanted, said = words(reference), words(answer)
    return 2 * subsequence(wanted, said) / (len(wanted) + len(said)) if wanted and said else 0.0
