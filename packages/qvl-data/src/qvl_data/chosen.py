"""What text such as `digits%50` or `a + b` means to a verb that reads every sample once: a data set for each list.

    sets, broken = open_lists(read_sources("digits[train:100,test:5]"))     # {"train": ..., "test": ...}

A list holds the samples that a `Mixture` of this name chooses, source after source. The lists of a folder are its
splits; a file by itself is called by its stem, in a sum it belongs to `train`.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl_core.errors import BadInput
from qvl_core.recipe.sources import BadSpec, spell

from .dataset import Dataset, Rows, splits
from .formats import Format
from .sample import Sample
from .sources import Item, Mixture, named_split, read_sources

if TYPE_CHECKING:
    from qvl_core.recipe.blocks import Source

_MARKS = re.compile(r"""[+*%\[\]'"]""")


class Chosen(Dataset):
    """The chosen samples of a mixture, each once and not augmented. Raises BadInput, BadSample as Dataset does."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.files = tuple(dict.fromkeys(file for dataset in mixture.datasets for file in dataset.files))
        names = [dataset.file.name for dataset in mixture.datasets]
        self.file = mixture.datasets[0].file if len(names) == 1 else Path(" + ".join(names))
        self.rows = _Chosen(mixture)

    def __getitem__(self, index: int) -> Sample:
        return self.mixture.sample(self._item(index))

    def outline(self, index: int) -> Sample:
        return self.mixture.outline(self._item(index))

    def read(self, row: Any, place: str) -> Sample:
        """The sample of a row of the file in which `place` lies. Raises BadSample."""
        held = [(len(str(file)), dataset) for dataset in self.mixture.datasets for file in dataset.files
                if place.startswith(str(file))]  # fmt: skip
        return max(held, key=lambda one: one[0])[1].read(row, place)

    def digests(self) -> Iterator[bytes]:
        """Of every file, and of what is chosen."""
        yield from chain.from_iterable(dataset.digests() for dataset in self.mixture.datasets)
        yield self.mixture.choice().encode()

    @property
    def format(self) -> Format:
        """That of the first source of which it can be told."""
        *others, last = self.mixture.datasets
        for dataset in others:
            with suppress(BadInput):
                return dataset.format
        return last.format

    def _item(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.file}: sample {index} of {len(self)}")
        return self.mixture.item(index % len(self))


class _Chosen:
    """The rows of a mixture's chosen samples."""

    format: str | None = None

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture

    def __len__(self) -> int:
        return self._mixture.chosen

    def __getitem__(self, index: int) -> Any:
        rows, row = self._find(index)
        return rows[row]

    def outline(self, index: int) -> Any:
        rows, row = self._find(index)
        return rows.outline(row)

    def place(self, index: int) -> str:
        rows, row = self._find(index)
        return rows.place(row)

    def raw(self, index: int) -> bytes | None:
        """The row as it stands in its file, where that is text."""
        rows, row = self._find(index)
        raw: bytes | None = rows.raw(row) if hasattr(rows, "raw") else None
        return raw

    def _find(self, index: int) -> tuple[Rows, int]:
        item = self._mixture.item(index)
        return self._mixture.datasets[item.source].rows, item.index


def sources_in(text: str) -> "list[Source] | None":
    """The sources that text such as `digits%50 + a` names; None for a path or a single name. Raises BadInput."""
    if os.path.exists(text) or not _MARKS.search(text) or _is_registered(text):
        return None
    try:
        return read_sources(text)
    except BadSpec as error:
        raise BadInput(f"{text}: no such file or folder, and no text that names sources: {error}") from None


def open_lists(
    sources: "Sequence[Source]",
    split: str | None = None,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    **reading: Any,
) -> tuple[dict[str, Dataset], list[BadInput]]:
    """The data of every list (or the one called `split`), and what is wrong with those that cannot be opened.

    reading  media_root, allow_root, max_pixels; format and columns hold for sources that state none

    Raises BadInput where a sample would be read several times, and if there is no such list.
    """
    _check_once(sources)
    alone = len(sources) == 1
    lists: dict[str, list[Source]] = {}
    for source in sources:
        own = source.model_copy(update={"format": source.format or format, "map": source.map or columns})
        for name in _lists_of(source):
            lists.setdefault(name or (Path(source.source).stem if alone else "train"), []).append(own)
    if split is not None:
        name = named_split(lists, split)
        if name is None:
            raise BadInput(f'{_text(sources)}: no split "{split}"; available: {", ".join(lists)}.')
        lists = {name: lists[name]}
    sets: dict[str, Dataset] = {}
    broken: list[BadInput] = []
    for name, members in lists.items():
        try:
            sets[name] = _data(Mixture(members, name, **reading))
        except BadInput as error:
            broken.append(error)
    return sets, broken


def _data(mixture: Mixture) -> Dataset:
    whole = len(mixture.datasets) == 1 and mixture.chosen == len(mixture.datasets[0])
    return mixture.datasets[0] if whole else Chosen(mixture)


def _check_once(sources: "Sequence[Source]") -> None:
    for source in sources:
        if source.weight != 1 or (source.percent or 0) > 100:
            raise BadInput(
                f"{spell(source.model_dump())}: every sample is read once here, so that a weight means nothing; remove"
                f' it, or write the mixture first: qvl-data mix "{_text(sources)}" --out DIR.'
            )


def _lists_of(source: "Source") -> Sequence[str | None]:
    """The lists for which a source has samples; None is that of a file. Raises BadInput."""
    from .registry import look_up

    if source.parts is not None:
        return list(source.parts)
    if source.split is not None:
        return [source.split]
    named = look_up(source.source)
    if named is not None:
        return named.split_names
    path = Path(source.source)
    return [None] if path.is_file() else list(splits(path))


def _text(sources: "Sequence[Source]") -> str:
    return " + ".join(spell(source.model_dump()) for source in sources)


def _is_registered(name: str) -> bool:
    from .registry import Registry

    with suppress(BadInput):
        return name in Registry()
    return False
