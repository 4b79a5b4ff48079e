"""The control of every learning test: the right questions about the wrong pictures."""

from collections.abc import Sequence

from ..order import order
from ..sample import Sample


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The same questions and answers, each with another sample's picture: what a model that looks cannot answer."""
    places = [order(seed, position, len(samples)) for position in range(len(samples))]  # a random ring ...
    other = {places[i - 1]: samples[place] for i, place in enumerate(places)}  # ... in which each takes its neighbour's
    return [sample.model_copy(update={"media": other[i].media}) for i, sample in enumerate(samples)]
