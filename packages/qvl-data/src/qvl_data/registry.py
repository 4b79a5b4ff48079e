"""Names for data sets, so that recipes and commands say `receipts%50` wherever the files lie.

    # datasets.yaml
    datasets:
      receipts: {path: data/receipts, format: qwenvl, media_root: photos, license: CC-BY-4.0}
      plates: {splits: {train: plates/a.jsonl, test: plates/b.jsonl}}

The file is the one that `--registry` names, else QVL_REGISTRY, else `datasets.yaml` in the current folder. Installed
packages add names through entry points of the group `qvl.datasets`; the file comes first. Relative paths start at the
folder of the file.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Augment, Block
from qvl_core.recipe.load import load

from .dataset import Dataset, splits

GROUP = "qvl.datasets"
FILE = "datasets.yaml"
VARIABLE = "QVL_REGISTRY"


class Entry(Block):
    """One data set of a registry."""

    path: str | None = None
    """File, or data set folder."""
    splits: dict[str, str] | None = None
    """File of each split, in place of `path`."""
    split: str | None = None
    """Split of the folder that the name stands for; default: the one that the list of sources is called after."""
    format: str | None = None
    """Sample format; default: recognised from the first sample."""
    map: dict[str, str] | None = None
    """Columns of the data by field of the format, where they have other names."""
    media_root: str | None = None
    """Folder that relative media paths start from; comes before the recipe's."""
    allow_root: tuple[str, ...] = ()
    """Further folders from which media may be read by absolute path."""
    augment: Augment | None = None
    """Random changes of the pictures in training, unless the source has its own."""
    license: str | None = None
    """Licence of the data: of its samples that state none, and as it is shown in lists and on cards."""

    @model_validator(mode="after")
    def _somewhere(self) -> "Entry":
        if (self.path is None) == (self.splits is None):
            raise ValueError("give exactly one of `path` and `splits`")
        if self.splits is not None and not self.splits:
            raise ValueError("`splits` names no file")
        if self.splits is not None and self.split is not None:
            raise ValueError("`split` chooses from the folder `path`; remove it beside `splits`")
        return self


class File(Block):
    """A registry file."""

    datasets: dict[str, Entry] | None = None
    """Data sets by name."""


@dataclass(frozen=True)
class Registered:
    """A data set as its registry says it. `folder` is where relative paths start, `place` where the entry stands."""

    name: str
    entry: Entry
    folder: Path
    place: str

    @property
    def media_root(self) -> Path | None:
        return None if self.entry.media_root is None else self.folder / self.entry.media_root

    @property
    def allow_root(self) -> tuple[Path, ...]:
        return tuple(self.folder / root for root in self.entry.allow_root)

    @property
    def paths(self) -> dict[str | None, Path]:
        """The path, or the file of each split."""
        if self.entry.splits is not None:
            return {split: self.folder / file for split, file in self.entry.splits.items()}
        return {None: self.folder / str(self.entry.path)}

    @property
    def split_names(self) -> list[str | None]:
        """The splits that the name stands for; one file without splits is None. Raises BadInput."""
        if self.entry.splits is not None or self.entry.split is not None:
            return list(self.entry.splits or [self.entry.split])
        path = self.paths[None]
        return [None] if path.is_file() else list(splits(path))

    @property
    def reading(self) -> dict[str, Any]:
        """What the entry says of its data (JSON), and where its paths start."""
        said = self.entry.model_dump(mode="json", exclude_defaults=True, exclude={"augment"})
        return {**said, "folder": str(self.folder)}

    def open(self, split: str | None = None, **reading: Any) -> Dataset:
        """The data of a split by itself; what is given of `reading` (options of Dataset) comes before the entry's.

        Raises BadInput.
        """
        entry = self.entry
        path, inside = (self.paths[split], None) if entry.splits is not None else (self.paths[None], split)
        own = {"format": entry.format, "media_root": self.media_root, "columns": entry.map, "license": entry.license}
        given = {key: value for key, value in reading.items() if value is not None}
        allow_root = (*self.allow_root, *given.pop("allow_root", ()))
        return Dataset(path, inside, **{**own, **given}, allow_root=allow_root)


class Registry(Mapping[str, Registered]):
    """The names of a registry file and of installed packages. Raises BadInput for what is wrong with the file."""

    def __init__(self, file: str | Path | None = None) -> None:
        self.file = find(file)
        self._own: dict[str, Registered] = {}
        if self.file is not None:
            for name, entry in read(self.file).items():
                self._own[name] = Registered(name, entry, self.file.parent, str(self.file))
        self._packages = {point.name: point for point in _entry_points() if point.name not in self._own}

    def __getitem__(self, name: str) -> Registered:
        return self._own[name] if name in self._own else _registered(self._packages[name])

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._packages

    def __len__(self) -> int:
        return len(self._own) + len(self._packages)

    def named(self, name: str) -> Registered | None:
        """The data set that `name` stands for; None for a path or a name on the hub.

        Raises BadInput where a path has the same name, or nothing is there and a registered name is close.
        """
        path = Path(name)
        if name in self:
            named = self[name]
            if os.path.exists(name) and not any(path.resolve() == own.resolve() for own in named.paths.values()):
                raise BadInput(
                    f'{name}: a registered data set ({named.place}) and a path are both called so; write "./{name}" for'
                    " the path, or rename the entry."
                )
            return named
        if "/" not in name and not os.path.exists(name) and (close := self.close(name)):  # a/b may be on the hub
            raise BadInput(f'{name}: no registered data set, file or folder is called so; did you mean "{close}"?')
        return None

    def close(self, name: str) -> str | None:
        """The registered name that was probably meant."""
        return next(iter(get_close_matches(name, list(self), 1)), None)


def look_up(name: str, registry: Registry | None = None) -> Registered | None:
    """What `name` stands for in a registry, by default the one in use; None for a path or a name on the hub.

    Raises BadInput as `Registry.named` does, and where the registry in use cannot be read, unless a path is called so.
    """
    if registry is None:
        try:
            registry = Registry()
        except BadInput:
            if os.path.exists(name):
                return None
            raise
    return registry.named(name)


def find(file: str | Path | None = None) -> Path | None:
    """The registry file in use, if there is one. Raises BadInput if one is named that is not there."""
    if file is not None:
        given, said = Path(file), f"{file}"
    elif os.environ.get(VARIABLE):
        given, said = Path(os.environ[VARIABLE]), f"{VARIABLE}={os.environ[VARIABLE]}"
    else:
        return Path(FILE) if Path(FILE).is_file() else None
    if not given.is_file():
        raise BadInput(f"{said}: there is no such registry file.")
    return given


def read(file: Path) -> dict[str, Entry]:
    """The entries of a registry file. Raises BadInput with the line of every mistake."""
    return _read(file, file.stat().st_mtime_ns)


@lru_cache
def _read(file: Path, changed: int) -> dict[str, Entry]:
    """`changed` (mtime in ns) only tells whether what is remembered still holds."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines()):
        return {}
    return load(File, file).datasets or {}


@lru_cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _registered(point: EntryPoint) -> Registered:
    """The data set of an entry point: fields of an Entry, or a function without arguments that gives them."""
    place = f"entry point {point.name} = {point.value}"
    try:
        fields: Any = point.load()
        fields = fields() if isinstance(fields, Callable) else fields  # type: ignore[arg-type]
    except Exception as error:
        raise BadInput(f"{place}: cannot be loaded ({type(error).__name__}: {error}).") from None
    try:
        entry = fields if isinstance(fields, Entry) else Entry.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"{place}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}."
        ) from None
    for path in (entry.path, *(entry.splits or {}).values()):
        if path is not None and not Path(path).is_absolute():
            raise BadInput(f"{place}: the path {path} is relative; give an absolute one.")
    return Registered(point.name, entry, Path(), place)
