"""One file, or one split of a dataset folder, as samples by number.

    Dataset("digits", split="train")[0]            # digits/train.parquet, or digits/train-00000.parquet, ...
    Dataset("data.jsonl", media_root="photos")[7]

A dataset folder holds a file for each split (`train.parquet`, `validation.jsonl`, ...), or numbered shards of it
(`train-00000.parquet`, `train-00000-of-00004.parquet`; `00000.tar` is one of `train`), in the folder itself or in
`data/`, as snapshots of the Hugging Face hub have them. A folder that `datasets` saved (`save_to_disk`), and with the
extra `hub` the name of a dataset on the hub, are read as well.
"""

import difflib
import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from qvl_core.errors import BadInput

from . import mimic_rows
from .errors import BadSample
from .formats import Format, get_format, recognise
from .limits import Limits
from .media import MAX_PIXELS, Opener
from .sample import SCHEMA, Sample

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".tar", ".arrow")
WHOLE_BYTES = 1 << 30
"""A Parquet file up to this size is read whole for its digest."""
SEARCHED = 100
"""Samples that are looked at to recognise a file's format."""

_WITH_OPTIONS = ("coco", "mimic")  # formats that take options where others take the names of columns
_ALIASES = ("validation", "val", "valid", "dev")
_COMPRESSED = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".zip")
# train-00003, train-00003-of-00010 (older hub snapshots end in a hash), 00003
_SHARD = re.compile(r"(?:(?P<split>.+?)-)?(?P<number>\d{4,})(?:-of-(?P<count>\d{4,})(?:-[0-9a-f]{16})?)?", re.ASCII)
# JSON files that tools lay beside the data, ours among them
_NO_DATA = re.compile(r"dataset_infos?|dataset_dict|state|\d+_stats|left_out|failed|duplicates|findings")


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
    """Samples by number, read when asked for. Picklable: worker processes open the files again.

    path        file, dataset folder, or name of a dataset on the hub (`owner/name`, `owner/name:config`)
    split       which split of a folder (`val`, `valid`, `dev` and `validation` are the same); a file has none
    format      name of a format; default: what the container says, else recognised from the first sample that can be
    columns     columns of the data by field of the format, where they have other names
    media_root  folder that relative media paths start from; default: the folder of the data file
    allow_root  further folders from which media may be read, by absolute path or by link
    license     licence of samples that state none

    `files` are the data files, in order; `file` names them in messages. Raises BadInput for what is wrong with a file,
    BadSample for what is wrong with one sample.
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
        license: str | None = None,
    ) -> None:
        self.files = data_files(Path(path), split)
        self.file = self.files[0] if len(self.files) == 1 else _pattern(self.files)
        self.rows: Rows
        if mimic_rows.is_mimic(Path(path)):
            self.file, self.rows = Path(path), mimic_rows.Rows(Path(path), split)
        else:
            self.rows = open_rows(self.files[0]) if len(self.files) == 1 else Shards(map(open_rows, self.files))
        self._format_name, self._columns, self._license = format, columns, license
        self._format: Format | None = None
        self._unknown: str | None = None  # why it cannot be told, so that it is tried once
        self.opener = Opener(
            Path(media_root) if media_root is not None else self.files[0].parent,
            tuple(Path(folder) for folder in allow_root),
            Limits(pixels=max_pixels),
        )
        if self.opener.root is not None and not self.opener.root.is_dir():
            raise BadInput(f"{media_root}: the media root is no folder.")
        if len(self.rows) == 0:
            raise BadInput(f"{self.file}: holds no samples.")
        if self.rows.format == "qvl" and (columns or format not in (None, "qvl")):
            given = "columns (--map)" if columns else f"format={format!r}"
            raise BadInput(f"{self.file}: holds qvl samples; remove {given}.")

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
        return self.read(read(index), place)

    def read(self, row: Any, place: str) -> Sample:
        """The sample of one row. Raises BadSample."""
        sample = licensed(self.format.read(row, place), self._license).read_from(self.opener, place)
        settle = getattr(self.format, "settle", None)  # what a format can only say once pictures can be opened
        return settle(sample) if settle else sample

    @property
    def reading(self) -> dict[str, Any]:
        """How the rows become samples, beside what they say themselves (JSON)."""
        roots = {"media_root": str(self.opener.root), "allow_root": [str(root) for root in self.opener.allow_root]}
        columns = dict(self._columns) if self._columns else None
        return {"format": self._format_name, "columns": columns, "license": self._license, **roots}

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def digests(self) -> Iterator[bytes]:
        """SHA-256 of each file; of a Parquet file over 1 GiB without its pictures, of which only the sizes count."""
        for file in self.files:
            status = file.stat()
            yield _digest(file, status.st_size, status.st_mtime_ns)

    @property
    def format(self) -> Format:
        if self._format is None:
            dictated = self.rows.format if self.rows.format in _WITH_OPTIONS or not self._columns else "flat"
            name = self._format_name or dictated
            if name is not None:
                self._format = get_format(name, self._columns)
            else:
                self._format = self._recognised()
        return self._format

    def _recognised(self) -> Format:
        """The format of the first sample that has one, so that a broken first line is only a broken line."""
        if self._unknown is not None:
            raise BadInput(self._unknown)
        problems = []
        for index in range(min(len(self), SEARCHED)):
            try:
                return recognise(self.rows[index], self.rows.place(index))
            except BadSample as error:
                problems.append(error)
        searched = "its only sample" if len(problems) == 1 else f"its first {len(problems)} samples"
        self._unknown = f"{self.file}: the format cannot be told from {searched}: {problems[0]}"
        raise BadInput(self._unknown)


def licensed(sample: Sample, license: str | None) -> Sample:
    """The sample under a licence, unless it states one."""
    if not license or sample.meta.license:
        return sample
    return sample.model_copy(update={"meta": sample.meta.model_copy(update={"license": license})})


class Shards:
    """The rows of several files, one after the other."""

    def __init__(self, shards: "Iterator[Rows] | Sequence[Rows]") -> None:
        self._shards = tuple(shards)
        self._starts = [0, *accumulate(map(len, self._shards))]
        found = list(dict.fromkeys(shard.format for shard in self._shards if len(shard)))
        if len(found) > 1:
            first, other = (next(s for s in self._shards if len(s) and s.format == f) for f in found[:2])
            raise BadInput(
                f"{other.place(0)}: this shard holds {found[1] or 'foreign'} samples, but {first.place(0)} holds"
                f" {found[0] or 'foreign'} ones; convert them to one kind."
            )
        self.format = found[0] if found else None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Any:
        shard, row = self._find(index)
        return shard[row]

    def outline(self, index: int) -> Any:
        shard, row = self._find(index)
        return shard.outline(row)

    def place(self, index: int) -> str:
        shard, row = self._find(index)
        return shard.place(row)

    def raw(self, index: int) -> bytes | None:
        """The row as it stands in its file, where that is text."""
        shard, row = self._find(index)
        raw: bytes | None = shard.raw(row) if hasattr(shard, "raw") else None
        return raw

    def _find(self, index: int) -> tuple[Rows, int]:
        shard = bisect_right(self._starts, index) - 1
        return self._shards[shard], index - self._starts[shard]


def open_rows(file: Path) -> Rows:
    """The rows of one data file, by its suffix and its first bytes. Raises BadInput."""
    if file.suffix == ".parquet":
        return _parquet(file)
    if file.suffix in (".jsonl", ".json"):
        return _json(file)
    if file.suffix == ".tar":
        from . import tar

        return tar.Rows(file)
    if file.suffix in (".csv", ".tsv", ".arrow"):
        from . import tables

        return tables.ArrowRows(file) if file.suffix == ".arrow" else tables.TextRows(file)
    if file.suffix in _COMPRESSED:
        raise BadInput(f"{file}: is compressed, so its rows cannot be read in any order; unpack it first.")
    raise BadInput(f"{file}: unknown kind of file; use one of {', '.join(SUFFIXES)}.")


def _parquet(file: Path) -> Rows:
    from . import parquet, tables
    from .row_groups import RowGroups

    groups = RowGroups(file)
    return parquet.Rows(file, groups) if groups.schema == SCHEMA else tables.ParquetRows(file, groups)


def _json(file: Path) -> Rows:
    from . import json_lines
    from .groups import unpacked

    kind = json_lines.layout(file)
    if kind != "object":
        return unpacked(json_lines.Rows(file, array=kind == "array"))
    from . import coco_rows

    if coco_rows.is_coco(file):
        return coco_rows.Rows(file)
    keys = json_lines.object_keys(file)
    names = ", ".join(f'"{key}"' for key in keys[:5])
    raise BadInput(
        f"{file}: holds one object (keys {names}), not samples; save the list that holds them as a file of its own"
        f" (jq .KEY), or put [ ] around a single sample."
    )


def splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each split of a dataset folder or of a name on the hub, in order; empty if a folder holds none.

    Raises BadInput.
    """
    from .hub import saved_splits

    if not folder.is_dir():
        return _on_hub(folder)

    if mimic_rows.is_mimic(folder):
        return mimic_rows.splits(folder)
    return (
        saved_splits(folder)
        or _splits_of(folder)
        or (_splits_of(folder / "data") if (folder / "data").is_dir() else {})
    )


def _splits_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    found: dict[str, list[Path]] = {}
    files = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    files = [file for file in files if not file.name.startswith(".") and not _NO_DATA.fullmatch(file.stem)]
    tars = {file.stem for file in files if file.suffix == ".tar"}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        if shard and not shard["split"] and file.suffix != ".tar" and file.stem in tars:
            continue  # img2dataset lays what it knows of 00000.tar beside it as 00000.parquet
        found.setdefault((shard["split"] or "train") if shard else file.stem, []).append(file)
    for split, shards in found.items():
        _check_shards(folder, split, shards)
    return {split: tuple(shards) for split, shards in found.items()}


def _check_shards(folder: Path, split: str, files: list[Path]) -> None:
    """One file, or all shards of one kind; a missing one is an error, never a smaller data set."""
    shards = [_SHARD.fullmatch(file.stem) for file in files]
    names = ", ".join(file.name for file in files[:3])
    if len(files) > 1 and (None in shards or len({file.suffix for file in files}) > 1):
        raise BadInput(f"{folder}: split {split!r} is there twice ({names}).")
    numbers = [int(shard["number"]) for shard in shards if shard]
    counts = {shard["count"] for shard in shards if shard}
    if len(set(numbers)) < len(numbers) or len(counts) > 1:
        raise BadInput(f"{folder}: split {split!r} has shards of two different writes ({names}); remove the old ones.")
    if numbers:
        (count,) = counts
        expected = range(int(count)) if count else range(min(numbers[0], 1), numbers[-1] + 1)
        if missing := sorted(set(expected) - set(numbers)):
            raise BadInput(f"{folder}: split {split!r} lacks shard {missing[0]} beside {names}; get the missing file.")


def data_files(path: Path, split: str | None) -> tuple[Path, ...]:
    """The files behind a path and a split, in order. Raises BadInput with what is there instead."""
    if path.is_file():
        if split is not None:
            raise BadInput(f"{path}: a file has no splits; remove split={split!r} or name its folder.")
        return (path,)
    found = splits(path)
    if split in found:
        return found[split]
    available = ", ".join(found) or f"none (no {', '.join(SUFFIXES)} file)"
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split is None:
        raise BadInput(f"{path}: which split? available: {available}.")
    if split in _ALIASES and len(same := [name for name in found if name in _ALIASES]) == 1:
        return found[same[0]]
    close = difflib.get_close_matches(split, found, 1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    how = f"; name one by --split, or as {path}[{next(iter(found))}]" if found and not close else ""
    raise BadInput(f'{path}: no split "{split}"; {hint}available: {available}{how}.')


def _on_hub(path: Path) -> dict[str, tuple[Path, ...]]:
    """The splits of what is no file and no folder, but could be a name on the hub."""
    from .hub import hub_splits, is_name

    similar = _similar(path)
    if similar or not is_name(path.as_posix()) or path.suffix in SUFFIXES or path.parent.is_dir():
        raise BadInput(f"{path}: no such file or folder{similar}.")
    return hub_splits(path.as_posix())


def _pattern(files: Sequence[Path]) -> Path:
    """`data/train-*.parquet` for the shards of one split."""
    shard = _SHARD.fullmatch(files[0].stem)
    split = f"{shard['split']}-" if shard and shard["split"] else ""
    return files[0].with_name(f"{split}*{files[0].suffix}")


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, (entry.name for entry in path.parent.iterdir()), 1)
    return f'; did you mean "{path.parent / close[0]}"' if close else ""


@lru_cache
def _digest(file: Path, size: int, changed: int) -> bytes:
    """Of one file; `size` and `changed` (mtime in ns) only tell whether a remembered one still holds."""
    if file.suffix == ".parquet" and size > WHOLE_BYTES:
        from .parquet import digest

        return digest(file)
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").digest()
