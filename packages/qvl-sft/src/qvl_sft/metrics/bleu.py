"""BLEU (Papineni et al. 2002) by sacrebleu, of the whole corpus, in 0..1.

Cut into words by the script of the references: `13a` where words are spaced, `zh` for Chinese, `char` for Japanese,
Korean, Thai. Smoothing is sacrebleu's default, `exp`; lengths of n-grams that no answer reaches are left out
(`effective_order`), so that a corpus of short answers, and one answer alone, have a figure too.
"""

from collections.abc import Sequence

import numpy as np

from qvl_sft.metrics import Array, Tally, register_metric
from qvl_sft.metrics.script import script_of
from qvl_sft.prediction import Prediction

TOKENIZERS = {"spaced": "13a", "han": "zh", "characters": "char"}
ORDERS = 4


@register_metric("bleu")
def bleu(predictions: Sequence[Prediction]) -> Tally:
    """Each answer adds its n-grams that a reference has, all its n-grams (n = 1..4), its length and its reference's."""
    from sacrebleu.metrics import BLEU

    script = script_of(reference for p in predictions for reference in p.accepted)
    scorer = BLEU(tokenize=TOKENIZERS[script], effective_order=True)
    counted = (scorer.sentence_score(p.said, p.accepted) for p in predictions)
    parts = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in counted]
    return Tally(np.array(parts, np.float64).reshape(-1, 2 * ORDERS + 2), _score)


def _score(sums: Array) -> Array:
    """(..., 10) sums of what answers add, as BLEU (...)."""
    from sacrebleu.metrics import BLEU

    rows = sums.reshape(-1, sums.shape[-1]).astype(int).tolist()
    made = (BLEU.compute_bleu(row[:ORDERS], row[ORDERS : 2 * ORDERS], *row[-2:], "exp", None, True) for row in rows)
    return np.array([score.score / 100 for score in made]).reshape(sums.shape[:-1])
