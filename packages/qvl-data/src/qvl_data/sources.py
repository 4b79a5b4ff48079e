"""Several sources as one endless sequence of samples: which sample stands at a position is computed, never stored.

    mixture = Mixture("2*digits%50 + receipts[train:1000,test:100]", "train")   # or recipe.data.train
    item = mixture.locate(seed, position)       # pure: the same in every process and after every restart
    sample = mixture.sample(item)

An epoch draws round(weight * n) samples of a source with n samples. A source's draws go through all of its samples
before one comes again, across epochs; the draws of all sources are shuffled together within the epoch.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from qvl_core.errors import BadInput
from qvl_core.recipe.sources import LISTS, parse_sources, spell
from qvl_core.training.samples import Bad

from .augment import augmented, keeps_length
from .dataset import Dataset, splits
from .errors import BadSample, placed
from .media import MAX_PIXELS
from .order import mix, order, orders
from .sample import Sample

if TYPE_CHECKING:
    from qvl_core.recipe.blocks import Augment, Data, Source

    from .registry import Registered, Registry

BLOCK = 1024
"""Positions that are located together once some of them were asked for: ten times as fast as one by one."""
TOUCHES = 32
"""Positions of a block that are located one by one before."""

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
    """The sources of one list (`data.train`, ...). Picklable. Raises BadInput for what is wrong with a source.

    sources        as a recipe has them, or as text
    default_split  name of the list: the split of sources that name none, and the part of `name[train:1000,test:100]`
    registry       names that may stand for paths; default: those of the registry file in use (`registry.look_up`)
    """

    def __init__(
        self,
        sources: "Sequence[Source] | str",
        default_split: str = "train",
        media_root: str | Path | None = None,
        allow_root: Sequence[str | Path] = (),
        max_pixels: int = MAX_PIXELS,
        registry: "Registry | None" = None,
    ) -> None:
        self.sources = tuple(read_sources(sources) if isinstance(sources, str) else sources)
        if not self.sources:
            raise BadInput(f"data.{default_split}: no sources; name at least one.")
        opened = [_open(source, default_split, registry, media_root, allow_root, max_pixels) for source in self.sources]
        self.datasets = tuple(one.dataset for one in opened)
        self._rules = tuple(one.augment for one in opened)
        self._readings = tuple(one.reading for one in opened)
        self._firsts = [one.first for one in opened]
        self.sizes = tuple(one.size for one in opened)
        """Samples that are chosen of each source."""
        self._count()

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_blocks", "_touched", "_listed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _count(self) -> None:
        self.draws = tuple(map(_draws, self.sources, self.sizes))
        """Samples of each source in an epoch."""
        self._ends = list(accumulate(self.draws))
        self._forget()

    def _forget(self) -> None:
        self._blocks: dict[tuple[int, int], list[Item]] = {}
        self._touched: dict[tuple[int, int], int] = {}
        self._listed: dict[int, NDArray[np.int64]] = {}

    def locate(self, seed: int, position: int) -> Item:
        """What stands at `position` (0, 1, ..., without end) of the order that `seed` gives."""
        number, place = divmod(position, BLOCK)
        block = self._blocks.get((seed, number))
        if block is not None:
            return block[place]
        touched = self._touched[seed, number] = self._touched.pop((seed, number), 0) + 1  # the newest stand last
        if touched < TOUCHES:
            _limit(self._touched, 64)
            return self._located(seed, position)
        del self._touched[seed, number]
        _limit(self._blocks, 7)
        block = self._blocks[seed, number] = self.located(seed, range(number * BLOCK, (number + 1) * BLOCK))
        return block[place]

    def _located(self, seed: int, position: int) -> Item:
        """`locate` of one position by itself."""
        epoch = position // len(self)
        slot = order(mix(seed, _EPOCH), position, len(self))
        source = bisect_right(self._ends, slot)
        draw = epoch * self.draws[source] + slot - (self._ends[source] - self.draws[source])
        chosen = order(mix(seed, _PASS, source), draw, self.sizes[source])
        if not self._is_whole(source):
            chosen = order(_SUBSET, self._firsts[source] + chosen, len(self.datasets[source]))
        return Item(source, chosen, draw // self.sizes[source], seed)

    def located(self, seed: int, positions: Sequence[int]) -> "list[Item]":
        """What stands at each of many positions, computed together."""
        wanted = np.asarray(positions, np.int64)
        epoch = wanted // len(self)
        slot = orders(mix(seed, _EPOCH), wanted, len(self))
        sources = np.searchsorted(self._ends, slot, side="right")
        found: list[Item | None] = [None] * len(wanted)
        for source in np.unique(sources).tolist():
            here = np.flatnonzero(sources == source)
            within = slot[here] - (self._ends[source] - self.draws[source])
            draw = epoch[here] * self.draws[source] + within
            chosen = orders(mix(seed, _PASS, source), draw, self.sizes[source])
            index, passes = self._originals(source, chosen), draw // self.sizes[source]
            for place, one, pass_number in zip(here.tolist(), index.tolist(), passes.tolist(), strict=True):
                found[place] = Item(source, one, pass_number, seed)
        return found  # type: ignore[return-value]  # every place belongs to one source

    def items(self) -> "Iterator[Item]":
        """Every chosen sample once, source by source, without augmentation: the order of evaluations."""
        return map(self.item, range(self.chosen))

    @property
    def chosen(self) -> int:
        """How many samples are chosen of all sources together: the length of `items`."""
        return sum(self.sizes)

    def item(self, number: int) -> Item:
        """Entry `number` of `items`."""
        source = 0
        while number >= self.sizes[source]:
            number -= self.sizes[source]
            source += 1
        if self._is_whole(source):
            return Item(source, number)
        if source not in self._listed:
            self._listed[source] = np.sort(self._originals(source, np.arange(self.sizes[source])))
        return Item(source, int(self._listed[source][number]))

    def sample(self, item: Item) -> Sample:
        """The sample of one draw; its pictures open augmented as the source says. Raises BadSample."""
        return self._augmented(self.datasets[item.source][item.index], item)

    def outline(self, item: Item) -> Sample:
        """The sample of one draw as `chat.length` needs it (see `Dataset.outline`). Raises BadSample."""
        return self._augmented(self.datasets[item.source].outline(item.index), item)

    def keeps_length(self, item: Item, sample: Sample) -> bool:
        """Whether the sample of this draw has the same length in every pass over its source."""
        rules = self._rules[item.source]
        return rules is None or item.pass_number is None or keeps_length(rules, sample)

    def place(self, item: Item) -> str:
        """Where the sample of one draw stands (`data/train.jsonl:12`): no two samples share it."""
        return self.datasets[item.source].rows.place(item.index)

    def bad(self, item: Item, error: BadSample, tolerated: bool = False) -> Bad:
        """The sample of one draw, which is left out for an error; ids may come again, so its place is named."""
        place = self.place(item)
        name = f"{place} ({error.sample_id})" if error.sample_id else place
        return Bad(name, error.reason, str(error), tolerated)

    @property
    def augments(self) -> bool:
        """Whether pictures of a source are changed at random as they are drawn."""
        return any(rules is not None for rules in self._rules)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the data files' contents, in order, and of how registered ones are read.

        Not seen are pictures outside the files, and an embedded picture that was changed in a Parquet file over 1 GiB
        and kept its length. What the sources say (take, weight, ...) stands in the recipe.
        """
        digest = hashlib.sha256()
        for dataset, reading in zip(self.datasets, self._readings, strict=True):
            digest.update(reading.encode())
            for content in dataset.digests():
                digest.update(content)
        return digest.hexdigest()

    def reading(self) -> list[dict[str, Any]]:
        """How the rows of each source become samples, whether the source, its list or the registry says so (JSON)."""
        return [dataset.reading for dataset in self.datasets]

    def weighted(self, weights: Sequence[float]) -> "Mixture":
        """The same sources under other weights. Raises BadInput."""
        if len(weights) != len(self.sources):
            raise BadInput(f"{len(weights)} weights for {len(self.sources)} sources; give one for each.")
        other = copy(self)
        other.sources = tuple(
            source.model_copy(
                update={"weight": weight, "percent": source.percent if (source.percent or 100) < 100 else None}
            )
            for source, weight in zip(self.sources, weights, strict=True)
        )
        other._count()
        return other

    def choice(self) -> str:
        """Changes with how many samples there are and which are drawn how often; not with their content (16 hex)."""
        numbers = [list(map(len, self.datasets)), self._firsts, self.sizes, self.draws]
        return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]

    def _augmented(self, sample: Sample, item: Item) -> Sample:
        rules = self._rules[item.source]
        if rules is None or item.pass_number is None:
            return sample
        with placed(sample):
            return augmented(sample, rules, item.seed, _AUGMENT, item.pass_number, item.source, item.index)

    def _is_whole(self, source: int) -> bool:
        return self.sizes[source] == len(self.datasets[source])

    def _originals(self, source: int, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices in the file of the chosen-th samples of a source's fixed random subset."""
        if self._is_whole(source):
            return chosen
        return orders(_SUBSET, self._firsts[source] + chosen, len(self.datasets[source]))


def mixtures(data: "Data") -> dict[str, Mixture]:
    """The lists of a recipe's `data` block: train, and validation and test where there are any. Raises BadInput."""
    lists = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        name: Mixture(sources, name, data.media_root, data.allow_root) for name, sources in lists.items() if sources
    }


def _limit(kept: dict[tuple[int, int], Any], size: int) -> None:
    """Drop the oldest entries beyond `size`."""
    while len(kept) > size:
        del kept[next(iter(kept))]


def read_sources(*texts: str) -> "list[Source]":
    """The sources that texts such as `2*digits%50 + receipts` name. Raises BadInput."""
    from qvl_core.recipe.blocks import Source

    found = []
    for fields in (fields for text in texts for fields in parse_sources(text)):
        try:
            found.append(Source(**fields))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise BadInput(f"{fields['source']}: {problem}.") from None
    return found


def shared(lists: Mapping[str, Mixture]) -> list[str]:
    """A sentence for each file of which two lists have samples in common: what is learned would be measured."""
    found = []
    for (one, a), (other, b) in combinations(lists.items(), 2):
        for i, first in enumerate(a.datasets):
            for j, second in enumerate(b.datasets):
                if _same(first, second) and (count := _common(a, i, b, j)):
                    found.append(f"{first.file}: {count} samples are in {one} and in {other}")
    return found


def _same(one: Dataset, other: Dataset) -> bool:
    """Whether two data sets have the same rows, however their path is written."""
    first, second = (Path(dataset.rows.place(0)).resolve() for dataset in (one, other))
    return first == second and len(one) == len(other)


def _common(a: Mixture, i: int, b: Mixture, j: int) -> int:
    """Subsets are stretches of one fixed random order."""
    start = max(a._firsts[i], b._firsts[j])
    return max(0, min(a._firsts[i] + a.sizes[i], b._firsts[j] + b.sizes[j]) - start)


@dataclass(frozen=True)
class _Opened:
    """The data of one source; samples `first` to `first + size` of its fixed random order are chosen."""

    dataset: Dataset
    first: int
    size: int
    augment: "Augment | None"
    reading: str
    """What the registry says about reading it (JSON): the recipe does not show it."""


def _open(
    source: "Source",
    list_name: str,
    registry: "Registry | None",
    media_root: str | Path | None,
    allow_root: Sequence[str | Path],
    max_pixels: int,
) -> _Opened:
    from .registry import look_up

    named = look_up(source.source, registry)
    path, split, carved = _find(source, list_name, named)
    entry = named.entry if named else None
    dataset = Dataset(
        path,
        split,
        source.format or (entry.format if entry else None),
        (named.media_root if named else None) or media_root,
        (*allow_root, *(named.allow_root if named else ())),
        max_pixels,
        source.map or (entry.map if entry else None),
        entry.license if entry else None,
    )
    first, size = _subset(source, list_name, carved, dataset)
    augment = source.augment or (entry.augment if entry and list_name == "train" else None)
    reading = entry.model_dump_json(include={"format", "map", "augment"}) if entry else ""
    return _Opened(dataset, first, size, augment, reading)


def _find(source: "Source", list_name: str, named: "Registered | None") -> tuple[Path, str | None, bool]:
    """Path and split of a source, and whether the parts of several lists lie in that one split. Raises BadInput."""
    paths: Mapping[str | None, Path] = named.paths if named else {None: Path(source.source)}
    wanted = source.split or (named.entry.split if named else None)
    if None in paths:
        path = paths[None]
        if path.is_file():
            return path, source.split, True
        available: dict[str, tuple[Path, str | None]] = {
            name: (path, name) for name in (splits(path) if path.is_dir() else ())
        }
    else:
        available = {str(name): (path, None) for name, path in paths.items()}
    if source.parts is not None and wanted is None:
        _check_part(source, list_name)
        if len(available) == 1 and not all(named_split(available, part) for part in source.parts):
            return *next(iter(available.values())), True
        if available and (missing := [part for part in source.parts if not named_split(available, part)]):
            raise BadInput(
                f'{source.source}: no split "{missing[0]}", and which of {", ".join(available)} it should be carved '
                "from cannot be told; name parts that are there, or one split and `take`."
            )
    name = wanted or list_name
    if None in paths:
        return paths[None], name, wanted is not None
    split = named_split(available, name)
    if split is None:
        how = f"; name one, as in {source.source}[{next(iter(available))}]" if available else ""
        raise BadInput(f'{source.source}: no split "{name}"; available: {", ".join(available)}{how}.')
    return *available[split], wanted is not None


def named_split(available: Mapping[str, Any], name: str) -> str | None:
    """The split of that name; `val`, `valid` and `dev` are validation."""
    if name in available:
        return name
    same = [other for other in ("validation", "val", "valid", "dev") if other in available]
    return same[0] if name == "validation" and len(same) == 1 else None


def _check_part(source: "Source", list_name: str) -> None:
    if list_name not in (source.parts or ()):
        raise BadInput(f"{spell(source.model_dump())}: has no part for the list {list_name}; add {list_name}:COUNT.")


def _subset(source: "Source", list_name: str, carved: bool, dataset: Dataset) -> tuple[int, int]:
    """First and number of the chosen samples in the fixed random order of a data set. Raises BadInput."""
    count = len(dataset)
    if source.parts is not None:
        _check_part(source, list_name)
        given: dict[str, int] = dict(source.parts.items())
        parts = {name: given[name] for name in LISTS if name in given}  # in the order of carving
        if not carved:
            parts = {list_name: parts[list_name]}
        if sum(parts.values()) > count:
            wanted = " + ".join(f"{part} {name}" for name, part in parts.items())
            raise BadInput(f"{dataset.file}: {wanted} of only {count} samples; lower the parts.")
        before = list(parts)[: list(parts).index(list_name)]
        return sum(parts[name] for name in before), parts[list_name]
    if source.take is not None:
        if source.take > count:
            raise BadInput(f"{dataset.file}: take {source.take} of only {count} samples; lower `take`.")
        return 0, source.take
    if source.percent is not None and source.percent < 100:
        return 0, max(1, round(count * source.percent / 100))
    return 0, count


def _draws(source: "Source", size: int) -> int:
    """How many samples of a source with `size` chosen ones an epoch draws. Raises BadInput."""
    weight = source.weight * max(1.0, (source.percent or 100) / 100)
    draws = round(weight * size)
    if draws == 0:
        least = (math.floor(0.5 / size * 1e6) + 1) / 1e6
        raise BadInput(
            f"{source.source}: weight {weight:g} of {size} samples is less than one sample in an epoch; make it at "
            f"least {least:g}, or remove the source."
        )
    return draws
