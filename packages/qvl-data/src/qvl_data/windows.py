"""Every sample of some lists, cut into windows that are named after the data.

What goes once through all samples writes a file for each window: a killed run goes on with what is lacking, machines
share windows out, and a folder may be added to from other data.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

from qvl_core.training.samples import Bad

from .errors import BadSample, placed
from .sample import Sample
from .sources import Item, Mixture

T = TypeVar("T")


@dataclass(frozen=True)
class Windows:
    """Windows of `size` samples, list by list, in the order of evaluations.

    asked  what else decides what is written of them, such as a language (text)
    """

    lists: Sequence[Mixture]
    size: int
    asked: str = ""

    def __len__(self) -> int:
        """How many windows there are."""
        return ceil(self.samples / self.size)

    @property
    def samples(self) -> int:
        return sum(mixture.chosen for mixture in self.lists)

    def names(self) -> list[str]:
        """A name for each window; that of a window of other data is another one."""
        said = [[mixture.fingerprint(), mixture.choice(), mixture.reading()] for mixture in self.lists]
        known = [self.size, said, *([self.asked] if self.asked else [])]
        data = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]
        return [f"{data}-{number:06d}" for number in range(len(self))]

    def numbers(self, window: int) -> range:
        """The samples of a window."""
        return range(window * self.size, min((window + 1) * self.size, self.samples))

    def at(self, number: int) -> tuple[Mixture, Item]:
        """The list of a sample, and which of its samples it is."""
        for mixture in self.lists:
            if number < mixture.chosen:
                return mixture, mixture.item(number)
            number -= mixture.chosen
        raise IndexError(number)

    def gathered(
        self, numbers: Iterable[int], take: Callable[[Sample, Mixture], Iterable[T]]
    ) -> tuple[list[T], tuple[Bad, ...]]:
        """All that `take` gives of some samples and their lists, and the samples that cannot be used."""
        found: list[T] = []
        bad: list[Bad] = []
        for number in numbers:
            mixture, item = self.at(number)
            try:
                sample = mixture.sample(item)
                with placed(sample):
                    found += [*take(sample, mixture)]
            except BadSample as error:
                bad.append(mixture.bad(item, error))
        return found, tuple(bad)
