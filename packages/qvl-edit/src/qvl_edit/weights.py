"""Weights as the document's flags spell them: `a=0.5,b=1.2` of tasks, `0=1,1=1,2=1,3=0` of numbers of sources."""

import math
from typing import Any


def task_weights(value: Any) -> Any:
    """Weights of tasks by name, if `value` is text; anything else stays. Raises ValueError."""
    return _checked(_split(value) if isinstance(value, str) else value)


def source_weights(value: Any) -> Any:
    """Weights of numbers of sources, if `value` is text; anything else stays. Raises ValueError."""
    pairs = _split(value) if isinstance(value, str) else value
    if not isinstance(pairs, dict):
        return pairs
    for number in pairs:
        if not str(number).isdecimal():
            raise ValueError(f"`{number}` is no number of sources; write 0=1,1=1,2=1,3=0")
    return _checked({int(number): weight for number, weight in pairs.items()})


def _split(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, number = (part.strip() for part in pair.partition("="))
        try:
            weight = float(number)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"`{pair}` is no weight; write NAME=NUMBER, with commas between")
        if name in found:
            raise ValueError(f"`{name}` has two weights; keep one")
        found[name] = weight
    return found


def _checked(weights: Any) -> Any:
    """Weights by name, of which one at least counts; what is no mapping of numbers is left to the recipe's types."""
    if not isinstance(weights, dict) or not all(isinstance(weight, int | float) for weight in weights.values()):
        return weights
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of `{name}` is {weight:g}; it must be 0 or more")
    if not any(weights.values()):
        raise ValueError("all weights are 0, so that nothing is trained; give one at least a weight above 0")
    return weights
