"""Small real data sets that the tiny recipes, the demos and the documentation run on; `qvl-data example NAME DIR`.

They are made of 1,797 handwritten digits and 15 photographs that the package carries. Everything is a function of
(split, seed).
"""

from collections.abc import Callable, Iterator
from importlib import import_module

from ..sample import Sample
from .split import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SETS = (
    "digits",
    "images",
    "video",
    "grounding",
    "edit",
    "multi_turn",
    "thinking",
    "drawings",
    "coloured",
    "recoloured",
)


def samples(name: str, split: Split, seed: int = 0) -> Iterator[Sample]:
    """The samples of one split of the set `name`."""
    make: Callable[[Split, int], Iterator[Sample]] = import_module(f"{__name__}.{name}").samples
    return make(split, seed)
