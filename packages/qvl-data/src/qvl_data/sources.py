"""Several sources as one endless sequence of samples: which sample stands at a position is computed, never stored.

    mixture = Mixture(recipe.data.train, "train")
    item = mixture.locate(seed, position)       # pure: the same in every process and after every restart
    sample = mixture.sample(item)

An epoch draws round(weight * n) samples of a source with n samples. A source's draws go through all of its samples
before one comes again, across epochs; the draws of all sources are shuffled together within the epoch.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from qvl_core.errors import BadInput

from .augment import augmented, keeps_length
from .dataset import Dataset
from .errors import placed
from .media import MAX_PIXELS
from .order import mix, order
from .sample import Sample

if TYPE_CHECKING:
    from qvl_core.recipe.blocks import Source

WHOLE_BYTES = 1 << 30
"""A Parquet file up to this size is read whole for its fingerprint."""

_SUBSET, _EPOCH, _PASS, _AUGMENT = range(4)  # what a random choice is about, so that no two are the same


@dataclass(frozen=True, slots=True)
class Item:
    """One draw: sample `index` of source `source`, in the source's pass `pass_number` over its samples, under `seed`.

    `pass_number` None stands for an evaluation, which is not augmented.
    """

    source: int
    index: int
    pass_number: int | None = None
    seed: int = 0


class Mixture:
    """The sources of one list (`data.train`, ...). Picklable. Raises BadInput for what is wrong with a source."""

    def __init__(
        self,
        sources: "Sequence[Source]",
        default_split: str = "train",
        media_root: str | Path | None = None,
        allow_root: Sequence[str | Path] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not sources:
            raise BadInput(f"data.{default_split}: no sources; name at least one.")
        self.sources = tuple(sources)
        self.datasets = tuple(
            Dataset(
                source.source,
                source.split if source.split is not None or Path(source.source).is_file() else default_split,
                source.format,
                media_root,
                allow_root,
                max_pixels,
                source.map,
            )
            for source in sources
        )
        self._sizes = [_size(source, dataset) for source, dataset in zip(self.sources, self.datasets, strict=True)]
        draws = [max(1, round(source.weight * n)) for source, n in zip(self.sources, self._sizes, strict=True)]
        self._ends = list(accumulate(draws))
        self._draws = draws

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._ends[-1]

    def locate(self, seed: int, position: int) -> Item:
        """What stands at `position` (0, 1, ..., without end) of the order that `seed` gives."""
        epoch = position // len(self)
        slot = order(mix(seed, _EPOCH), position, len(self))
        source = bisect_right(self._ends, slot)
        within = slot - (self._ends[source] - self._draws[source])
        draw = epoch * self._draws[source] + within
        chosen = order(mix(seed, _PASS, source), draw, self._sizes[source])
        return Item(source, self._original(source, chosen), draw // self._sizes[source], seed)

    def items(self) -> Iterator[Item]:
        """Every chosen sample once, source by source, without augmentation: the order of evaluations."""
        for source, size in enumerate(self._sizes):
            chosen = sorted(self._original(source, i) for i in range(size))
            yield from (Item(source, index) for index in chosen)

    def sample(self, item: Item) -> Sample:
        """The sample of one draw; its pictures open augmented as the source says. Raises BadSample."""
        return self._augmented(self.datasets[item.source][item.index], item)

    def outline(self, item: Item) -> Sample:
        """The sample of one draw as `chat.length` needs it (see `Dataset.outline`). Raises BadSample."""
        return self._augmented(self.datasets[item.source].outline(item.index), item)

    def keeps_length(self, item: Item, sample: Sample) -> bool:
        """Whether the sample of this draw has the same length in every pass over its source."""
        rules = self.sources[item.source].augment
        return rules is None or item.pass_number is None or keeps_length(rules, sample)

    def place(self, item: Item) -> str:
        """Where the sample of one draw stands (`data/train.jsonl:12`): no two samples share it."""
        return self.datasets[item.source].rows.place(item.index)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the data files' contents, in order.

        Not seen are pictures outside the files, and an embedded picture that was changed in a Parquet file over 1 GiB
        and kept its length. What the sources say (take, weight, ...) stands in the recipe.
        """
        digest = hashlib.sha256()
        for dataset in self.datasets:
            status = dataset.file.stat()
            digest.update(_digest(dataset.file, status.st_size, status.st_mtime_ns))
        return digest.hexdigest()

    def _augmented(self, sample: Sample, item: Item) -> Sample:
        rules = self.sources[item.source].augment
        if rules is None or item.pass_number is None:
            return sample
        with placed(sample):
            return augmented(sample, rules, item.seed, _AUGMENT, item.pass_number, item.source, item.index)

    def _original(self, source: int, chosen: int) -> int:
        """Index in the file of the chosen-th sample of a source's fixed random subset."""
        count = len(self.datasets[source])
        return chosen if self._sizes[source] == count else order(_SUBSET, chosen, count)


def _size(source: "Source", dataset: Dataset) -> int:
    count = len(dataset)
    if source.take is not None:
        if source.take > count:
            raise BadInput(f"{dataset.file}: take {source.take} of only {count} samples; lower `take`.")
        return source.take
    if source.percent is not None:
        return max(1, round(count * source.percent / 100))
    return count


@lru_cache
def _digest(file: Path, size: int, changed: int) -> bytes:
    """SHA-256 of a data file; `size` and `changed` (mtime in ns) only tell whether a remembered one still holds."""
    if file.suffix == ".parquet" and size > WHOLE_BYTES:
        from .parquet import digest

        return digest(file)
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").digest()
