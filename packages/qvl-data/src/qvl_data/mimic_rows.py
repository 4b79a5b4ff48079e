"""The folder of MIMIC-CXR-JPG as rows, one per study: metadata and split CSV, reports and JPEG files.

    mimic-cxr-2.0.0-metadata.csv(.gz)   dicom_id, subject_id, study_id, ViewPosition, ...
    mimic-cxr-2.0.0-split.csv(.gz)      dicom_id, study_id, subject_id, split (train, validate, test)
    files/p10/p10000032/s50414267.txt             the report (or below mimic-cxr-reports/)
    files/p10/p10000032/s50414267/<dicom_id>.jpg  the pictures

Without a split CSV all studies are in `train`. Values of the metadata stay text. Licence and access: PhysioNet.
"""

import csv
import gzip
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from qvl_core.errors import BadInput, first_line

from .errors import BadSample

if TYPE_CHECKING:
    import pyarrow as pa

MAX_REPORT = 1 << 20
"""Longest report in bytes."""

_SPLITS = {"train": "train", "validation": "validate", "test": "test"}
_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "validate": "validation"}
_IDS = ("subject_id", "study_id", "dicom_id")
_CLEAN = {
    "subject_id": re.compile(r"\d{2,20}"),
    "study_id": re.compile(r"\d{1,20}"),
    "dicom_id": re.compile(r"[\w-]+", re.A),
}


def is_mimic(folder: Path) -> bool:
    """Whether a folder holds the metadata of MIMIC-CXR-JPG."""
    return folder.is_dir() and _csv(folder, "metadata") is not None


def splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The CSV files behind each split that has studies; behind every split if they are unsound, as `Rows` tells."""
    metadata, listed = _csv(folder, "metadata"), _csv(folder, "split")
    if metadata is None or listed is None:
        return dict.fromkeys(("train",), tuple(file for file in (metadata, listed) if file is not None))
    try:
        studies = _read(metadata, _IDS)["study_id"].to_numpy().astype(str)
        spelt = set(_split_of(listed, metadata, studies))
    except BadInput:
        spelt = set(_SPLITS.values())
    return {name: (metadata, listed) for name, there in _SPLITS.items() if there in spelt}


class Rows:
    """The studies of one split by number, in the order of the metadata. Read again after pickling. Raises BadInput."""

    format: str | None = "mimic"

    def __init__(self, folder: Path, split: str | None = None) -> None:
        self.folder = folder
        self.split = _ALIASES.get(split or "train", split or "train")
        self._load()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.place(index)
        numbers = self._order[self._starts[index] : self._starts[index + 1]]
        pictures = self._table.take(numbers).to_pylist()
        subject, study = pictures[0]["subject_id"], pictures[0]["study_id"]
        images = [
            {"path": f"{_folder(subject, study)}/{picture['dicom_id']}.jpg"}
            | {key: value for key, value in picture.items() if key not in ("subject_id", "study_id")}
            for picture in pictures
        ]
        row = {"subject_id": subject, "study_id": study, "report": self._report(index, place), "images": images}
        return row | ({"split": _SPLITS[self.split]} if self._has_splits else {})

    def outline(self, index: int) -> dict[str, Any]:
        return self[index]

    def place(self, index: int) -> str:
        """The report: `mimic/files/p10/p10000032/s50414267.txt`."""
        return str(self.folder / self._report_name(index))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def _load(self) -> None:
        import numpy as np

        metadata, listed = _csv(self.folder, "metadata"), _csv(self.folder, "split")
        if metadata is None:
            raise BadInput(f"{self.folder}: holds no mimic-cxr-*-metadata.csv or .csv.gz.")
        if self.split not in (_SPLITS if listed else ("train",)):
            raise BadInput(
                f'{self.folder}: no split "{self.split}"; there are {", ".join(_SPLITS if listed else ("train",))}.'
            )
        self._table = _read(metadata, _IDS)
        studies = self._table["study_id"].to_numpy().astype(str)
        self._has_splits = listed is not None
        if listed is not None:
            chosen = _split_of(listed, metadata, studies) == _SPLITS[self.split]
        else:
            chosen = np.ones(len(studies), bool)
        kept = np.flatnonzero(chosen)
        _, first, group = np.unique(studies[kept], return_index=True, return_inverse=True)
        group = first[group]  # the studies in the order of their first pictures
        by_study = np.argsort(group, kind="stable")
        self._order = kept[by_study]
        self._starts = np.append(np.flatnonzero(np.diff(group[by_study], prepend=-1)), len(kept))

    def _report_name(self, index: int) -> str:
        number = int(self._order[self._starts[index]])
        subject, study = (self._table[key][number].as_py() for key in ("subject_id", "study_id"))
        return f"{_folder(subject, study)}.txt"

    def _report(self, index: int, place: str) -> str | None:
        name = self._report_name(index)
        for file in (self.folder / name, self.folder / "mimic-cxr-reports" / name):
            try:
                with file.open("rb") as opened:
                    data = opened.read(MAX_REPORT + 1)
            except OSError:
                continue
            if len(data) > MAX_REPORT:
                raise BadSample("mimic", f"a report longer than {MAX_REPORT >> 20} MiB", place)
            try:
                return data.decode().replace("\r\n", "\n")
            except UnicodeDecodeError as error:
                raise BadSample("mimic", f"the report is no UTF-8 (byte {error.start + 1})", place) from None
        return None


def _folder(subject: str, study: str) -> str:
    return f"files/p{subject[:2]}/p{subject}/s{study}"


def _csv(folder: Path, kind: str) -> Path | None:
    """The newest CSV of a kind, packed or not."""
    found = sorted(file for file in folder.glob(f"mimic-cxr-*-{kind}.csv*") if file.name.endswith((".csv", ".csv.gz")))
    return found[-1] if found else None


def _read(file: Path, needed: tuple[str, ...]) -> "pa.Table":
    """A CSV file as a table of texts, with clean ids. Raises BadInput."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv as arrow_csv

    try:
        with cast(
            IO[str],
            gzip.open(file, "rt", encoding="utf-8-sig") if file.suffix == ".gz" else file.open(encoding="utf-8-sig"),
        ) as head:
            names = next(csv.reader(head), [])
        options = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, include_columns=names
        )
        table = arrow_csv.read_csv(
            file, convert_options=options, parse_options=arrow_csv.ParseOptions(newlines_in_values=True)
        )
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise BadInput(f"{file}: not a readable CSV file ({first_line(error)}).") from None
    for name in needed:
        if name not in table.column_names:
            raise BadInput(f'{file}: no column "{name}"; there are {", ".join(table.column_names)}.')
        if name in _CLEAN:
            sound = pc.match_substring_regex(table[name], f"^(?:{_CLEAN[name].pattern})$")
            if len(wrong := table[name].filter(pc.invert(sound))):
                raise BadInput(f"{file}: {wrong[0].as_py()!r} is no {name}.")
    return table.combine_chunks()


def _split_of(file: Path, metadata: Path, studies: Any) -> Any:
    """The split of each of `studies`; every study must be in exactly one. Raises BadInput."""
    import numpy as np

    table = _read(file, ("study_id", "split"))
    pairs = np.unique(
        np.array([table["study_id"].to_pylist(), table["split"].to_pylist()], dtype=object).T.astype(str), axis=0
    )
    ids, counts = np.unique(pairs[:, 0], return_counts=True)
    if (counts > 1).any():
        raise BadInput(f"{file}: study {ids[counts > 1][0]} is in several splits; keep one.")
    if unknown := sorted(set(pairs[:, 1]) - set(_SPLITS.values())):
        raise BadInput(f"{file}: unknown split '{unknown[0]}'; use {', '.join(_SPLITS.values())}.")
    if len(missing := np.setdiff1d(studies, ids)):
        raise BadInput(
            f"{file}: has no split for study {missing[0]}, which {metadata.name} names; get both files anew."
        )
    return pairs[np.searchsorted(ids, studies), 1]
