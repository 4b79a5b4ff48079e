"""What only shows when all samples are at hand: ids given twice, samples that are there twice, pictures in two splits.

Samples are compared by 64-bit hashes, 16 bytes for each id, content and picture. Among ten million of them a false
alarm has a chance of 3 in a million.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput

from ..dataset import Dataset
from ..errors import BadSample
from .finding import Finding
from .work import CONTENT, HASHES, ID, MEDIA


@dataclass
class Across:
    """The samples of all splits, numbered through.

    files   hashes of each step (npy files of HASHES) with the split that it belongs to, in order
    """

    sets: Mapping[str, Dataset]
    files: list[tuple[str, Path]]

    def __post_init__(self) -> None:
        self._splits = list(self.sets)
        self._starts = [*accumulate(map(len, self.sets.values()), initial=0)]

    def findings(self) -> Iterator[Finding]:
        """Everything that is there twice, in the order of the data; of one sample, each reason once."""
        pairs = np.concatenate([self._repeated(kind) for kind in (ID, CONTENT, MEDIA)])  # (N, 3)
        told: set[str] = set()
        at = -1
        for later, kind, first in pairs[np.lexsort((pairs[:, 2], pairs[:, 1], pairs[:, 0]))].tolist():
            if later != at:
                at, told = later, set()
            (split, index), (origin, earlier) = self._at(later), self._at(first)
            problem = _problem(kind, self.sets[origin].rows.place(earlier), origin == split)
            if problem.reason not in told:
                told.add(problem.reason)
                place = self.sets[split].rows.place(index)
                yield Finding.of(problem, place, self._id(split, index), split, index)

    def number(self, split: str, index: int) -> int:
        """Number of a sample in the whole data set, from 0."""
        return self._starts[self._splits.index(split)] + index

    def ids(self) -> NDArray[np.uint64]:
        """Sorted hashes of all ids."""
        return np.unique(self._load(ID)[1])

    def _repeated(self, kind: int) -> NDArray[np.int64]:
        """(N, 3) of sample, kind, and the first sample with the same hash; pictures count only in another split."""
        numbers, hashes = self._load(kind)
        order = np.argsort(hashes, kind="stable")
        ranked, numbers = hashes[order], numbers[order]
        again = np.flatnonzero(ranked[1:] == ranked[:-1]) + 1
        later, first = numbers[again], numbers[np.searchsorted(ranked, ranked[again])]  # leftmost: the earliest
        if kind == MEDIA:
            apart = np.searchsorted(self._starts, later, "right") != np.searchsorted(self._starts, first, "right")
            later, first = later[apart], first[apart]
        return np.stack([later, np.full_like(later, kind), first], axis=1)

    def _load(self, kind: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Numbers of samples, and a hash of each: (N,), (N,), in the order of the data."""
        numbers, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for split, file in self.files:
            found = np.load(file)
            found = found[found["kind"] == kind]
            numbers.append(found["index"].astype(np.int64) + self._starts[self._splits.index(split)])
            hashes.append(found["hash"].astype(np.uint64))
        return np.concatenate(numbers), np.concatenate(hashes)

    def _at(self, number: int) -> tuple[str, int]:
        """Split, and index in it, of a sample."""
        split = bisect_right(self._starts, number) - 1
        return self._splits[split], number - self._starts[split]

    def _id(self, split: str, index: int) -> str:
        try:
            return self.sets[split].outline(index).id
        except BadInput:  # of a file that has changed meanwhile
            return ""


def _problem(kind: int, first: str, same_split: bool) -> BadSample:
    if kind == ID:
        said = f"its id was already given at {first}, and ids are unique in a data set; rename one of them"
        return BadSample("duplicate_id", said)
    if kind == MEDIA:
        said = f"shows a picture or video that also stands at {first}, in another split; keep it in one of them"
        return BadSample("split_leak", said)
    if same_split:
        return BadSample("duplicate_sample", f"says and shows the same as {first}; remove one of them")
    return BadSample("split_leak", f"is the same sample as {first}, in another split; remove one of them")


def save(hashes: NDArray[Any], file: Path) -> None:
    """Keep the hashes of one step."""
    assert hashes.dtype == HASHES
    with file.open("wb") as out:
        np.save(out, hashes)
