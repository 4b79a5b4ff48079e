"""A few of many, evenly."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most `most` of `values`, two or more: the first and the last among them, evenly spread."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
