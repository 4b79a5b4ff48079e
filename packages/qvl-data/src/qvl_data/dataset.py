"""One file, or one split of a dataset folder, as samples by number.

    Dataset("digits", split="train")[0]        # digits/train.parquet
    Dataset("data.jsonl", media_root="photos")[7]

A dataset folder holds `train`, `validation` and `test` files (Parquet, JSONL or JSON).
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from qvl_core.errors import BadInput

from .errors import BadSample
from .formats import Format, get_format, recognise
from .media import MAX_PIXELS, Opener
from .sample import Sample

SUFFIXES = (".parquet", ".jsonl", ".json")
SEARCHED = 100
"""Samples that are looked at to recognise a file's format."""


class Rows(Protocol):
    """What a container gives: rows by number, with all they hold or as far as lengths need it, and their places.

    No two rows have the same place.
    """

    format: str | None
    """Format of the rows, where the container itself says it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...
    def outline(self, index: int) -> Any: ...
    def place(self, index: int) -> str: ...


class Dataset:
    """Samples by number, read when asked for. Picklable: worker processes open the file again.

    split       which file of a dataset folder; a file has none
    format      name of a format; default: what the container says, else recognised from the first sample that can be
    columns     columns of the data by field of the format, where they have other names
    media_root  folder that relative media paths start from; default: the folder of the data file
    allow_root  further folders from which media may be read, by absolute path or by link

    Raises BadInput for what is wrong with the file, BadSample for what is wrong with one sample.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        format: str | None = None,
        media_root: str | Path | None = None,
        allow_root: Sequence[str | Path] = (),
        max_pixels: int = MAX_PIXELS,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.file = data_file(Path(path), split)
        self.rows = open_rows(self.file)
        self._format_name, self._columns = format, columns
        self._format: Format | None = None
        self.opener = Opener(
            Path(media_root) if media_root is not None else self.file.parent,
            tuple(Path(folder) for folder in allow_root),
            max_pixels,
        )
        if self.opener.root is not None and not self.opener.root.is_dir():
            raise BadInput(f"{media_root}: the media root is no folder.")
        if len(self.rows) == 0:
            raise BadInput(f"{self.file}: holds no samples.")
        if self.rows.format is not None and format not in (None, self.rows.format):
            raise BadInput(f"{self.file}: holds {self.rows.format} samples; remove format={format!r}.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, self.rows.__getitem__)

    def outline(self, index: int) -> Sample:
        """The sample as `chat.length` needs it: embedded pictures whose size is stated may be empty."""
        return self._sample(index, self.rows.outline)

    def _sample(self, index: int, read: Callable[[int], Any]) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.file}: sample {index} of {len(self)}")
        index %= len(self)
        place = self.rows.place(index)
        row = read(index)
        sample = self.format.read(row, place)
        return sample.read_from(self.opener, place)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def format(self) -> Format:
        if self._format is None:
            name = self.rows.format or self._format_name or ("flat" if self._columns else None)
            if name is not None:
                self._format = get_format(name, self._columns)
            else:
                self._format = self._recognised()
        return self._format

    def _recognised(self) -> Format:
        """The format of the first sample that has one, so that a broken first line is only a broken line."""
        problems = []
        for index in range(min(len(self), SEARCHED)):
            try:
                return recognise(self.rows[index], self.rows.place(index))
            except BadSample as error:
                problems.append(error)
        searched = "its only sample" if len(problems) == 1 else f"its first {len(problems)} samples"
        raise BadInput(f"{self.file}: the format cannot be told from {searched}: {problems[0]}")


def open_rows(file: Path) -> Rows:
    """The rows of one data file, by its suffix. Raises BadInput."""
    if file.suffix == ".parquet":
        from . import parquet

        return parquet.Rows(file)
    if file.suffix in (".jsonl", ".json"):
        from . import json_lines

        return json_lines.Rows(file)
    raise BadInput(f"{file}: unknown kind of file; use one of {', '.join(SUFFIXES)}.")


def splits(folder: Path) -> dict[str, Path]:
    """The split files of a dataset folder by split name."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in SUFFIXES and file.is_file():
            if file.stem in found:
                raise BadInput(f"{folder}: split {file.stem!r} is there twice ({found[file.stem].name}, {file.name}).")
            found[file.stem] = file
    return found


def data_file(path: Path, split: str | None) -> Path:
    """The file behind a path and a split. Raises BadInput with what is there instead."""
    if path.is_file():
        if split is not None:
            raise BadInput(f"{path}: a file has no splits; remove split={split!r} or name its folder.")
        return path
    if not path.is_dir():
        raise BadInput(f"{path}: no such file or folder{_similar(path)}.")
    found = splits(path)
    if split in found:
        return found[split]
    available = ", ".join(found) or f"none (no {', '.join(SUFFIXES)} file)"
    if split is None:
        raise BadInput(f"{path}: which split? available: {available}.")
    close = difflib.get_close_matches(split, found, 1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    raise BadInput(f'{path}: no split "{split}"; {hint}available: {available}.')


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, (entry.name for entry in path.parent.iterdir()), 1)
    return f'; did you mean "{path.parent / close[0]}"' if close else ""
