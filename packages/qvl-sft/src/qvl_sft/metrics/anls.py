"""Average normalised Levenshtein similarity, for text read off pictures (Biten et al. 2019, arXiv:1907.00490).

The best over the references of 1 - d / max(lengths), where d counts the letters to change, without regard to case and
repeated white space; 0 where that is not above 0.5, because then another word was read.
"""

from collections.abc import Sequence

from qvl_sft.metrics import register_metric
from qvl_sft.prediction import Prediction

THRESHOLD = 0.5


@register_metric("anls", right=0.5)
def anls(predictions: Sequence[Prediction]) -> list[float]:
    """0..1 for each answer."""
    return [max(similarity(p.said, reference) for reference in p.accepted) for p in predictions]


def similarity(answer: str, reference: str) -> float:
    """0, or above 0.5 and up to 1."""
    one, other = (" ".join(text.lower().split()) for text in (answer, reference))
    longest = max(len(one), len(other))
    if longest == 0:
        return 1.0
    if abs(len(one) - len(other)) >= THRESHOLD * longest:  # as many letters at least are missing
        return 0.0
    distance = levenshtein(one, other) / longest
    return 1.0 - distance if distance < THRESHOLD else 0.0


def levenshtein(one: str, other: str) -> int:
    """Fewest insertions, deletions and exchanges of a letter that make `other` of `one`.

    Bit-parallel (Myers 1999 as simplified by Hyyrö 2003): bit i of `up` and `down` says that the column of the usual
    table rises or falls by one in row i, so that a column costs a few operations on one integer.
    """
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for row, letter in enumerate(one):
        places[letter] = places.get(letter, 0) | 1 << row
    every, last = (1 << len(one)) - 1, 1 << len(one) - 1
    up, down, distance = every, 0, len(one)
    for letter in other:
        equal = places.get(letter, 0)
        level = (((equal & up) + up) ^ up) | equal | down
        rises, falls = down | ~(level | up) & every, up & level
        distance += bool(rises & last) - bool(falls & last)
        rises, falls = rises << 1 | 1, falls << 1
        up, down = (falls | ~(level | rises)) & every, rises & level & every
    return distance
