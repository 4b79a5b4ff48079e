"""Which text of a sample is learned from, and when it is left out: functions of (seed, step, slot) alone.

A sample has an instruction in some languages, and may have the inverse of it, which leads from the target back to the
source and needs exactly one source. One of all texts that are not empty is taken, each as often as any other. A text is
left out at times, so that guidance has something to compare with; the direction stays as it was drawn.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from qvl_core.training.seeds import mix

T = TypeVar("T")


class Text(NamedTuple):
    """One of a sample's texts."""

    language: str
    inverse: bool = False


class Choice(NamedTuple):
    """What is learned from, and whether its words are left out."""

    text: Text
    left_out: bool = False


def learnable(instruction: Mapping[str, str], inverse: Mapping[str, str], sources: int) -> tuple[Text, ...]:
    """The texts that a sample with so many sources can be learned from; both are texts by language."""
    there = [Text(language) for language, text in instruction.items() if text.strip()]
    if sources == 1:
        there += [Text(language, True) for language, text in inverse.items() if text.strip()]
    return tuple(sorted(there))


def choose(texts: Sequence[Text], seed: int, step: int, slot: int, dropout: float = 0.05) -> Choice:
    """One of at least one text."""
    place, left_out = np.random.default_rng(mix(seed, "text", step, slot)).random(2)
    return Choice(texts[int(place * len(texts))], bool(left_out < dropout))


def directed(text: Text, target: T, sources: tuple[T, ...]) -> tuple[T, tuple[T, ...]]:
    """Target and sources as they are learned: an inverse text exchanges them."""
    if not text.inverse:
        return target, sources
    (source,) = sources
    return source, (target,)
