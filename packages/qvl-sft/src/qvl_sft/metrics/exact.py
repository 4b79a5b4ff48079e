"""Exact match."""

from collections.abc import Sequence

from qvl_sft.metrics import register_metric
from qvl_sft.prediction import Prediction


@register_metric("exact_match", right=1.0)
def exact_match(predictions: Sequence[Prediction]) -> list[float]:
    """1 for an answer that equals a reference up to white space at the ends."""
    return [float(p.said in p.accepted) for p in predictions]
