"""Embeddings in a file for each text, as upstream's extraction lays them out: written for its trainer, read from its
folders.

OUT/NAME/LINE_en.pt            (L, D) of a text, pickled by torch; LINE counts from 0
OUT/NAME_rank_000.jsonl        rows with the paths of their embeddings and the sizes of their pictures
OUT/files.json                 ours alone: what the embeddings were made with, which training compares, and of which
                               data all are there

A row names a file for each of its texts, `embeddings_tensor_en`, `_cn` and `_droptext`, and those of the way back with
`_inv`. Such files are pickles, so nothing but a tensor is taken from them (`weights_only`). Of upstream's own folders
nobody knows the model, template and sizes they were made with: all but the width is taken on trust.
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl_core.errors import BadInput, first_line
from qvl_core.files import write_atomic, writing
from qvl_data.errors import BadSample, placed
from qvl_data.formats import edit
from qvl_data.formats.common import unpack_extra
from qvl_data.media import locate
from qvl_data.sample import Sample
from qvl_data.sources import Mixture
from qvl_edit.profile import Profile
from qvl_edit.questions import Asking, sources_of, target_of
from qvl_edit.stored import StoredEmbeddings
from qvl_edit.tasks import HEAD, names_of

FILES_FIX = "write them again: qvl-edit extract RECIPE --layout files --out FOLDER"
COLUMN = "embeddings_tensor"
SUFFIX = {"en": "_en", "zh": "_cn", "": "_droptext"}
"""By language; of the empty text, `_droptext`."""
TEXTS = {
    "": {"en": "instruction", "zh": "instruction_cn"},
    "_inv": {"en": "inverse_instruction", "zh": "inverse_instruction_cn"},
}
"""Columns of texts by language, of an instruction and of the way back."""


class FiledEmbeddings:
    """Embeddings of width `width` in files that rows name: `qvl_edit.slots.Told`."""

    def __init__(self, width: int) -> None:
        self.width = width

    def pieces(self, sample: Sample, pictures: Sequence[int], text: str) -> tuple[Tensor]:
        """(L, D) of a text about some of a sample's media. Raises BadSample."""
        fields, _ = unpack_extra(sample, "edit")
        column = COLUMN + next(iter(_suffixes(sample, pictures, text)), "")
        path = fields.get(column)
        if not isinstance(path, str):
            problem = f'"{column}" names no file; extract the embeddings of this row, or set stored.layout=shards'
            raise BadSample("not_extracted", problem, sample.place, sample.id)
        with placed(sample):
            return (read(locate(path, sample.opener.root, sample.opener.allow_root), self.width),)


def read(file: Path, width: int) -> Tensor:
    """(L, width) that torch has pickled. Raises BadSample for anything else."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = "is a pickle of more than a tensor, which could run code and is not opened; store the tensor alone"
        raise BadSample("embedding", problem, str(file)) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise BadSample(
            "embedding", f"is cut off or damaged ({first_line(error)}); extract it again", str(file)
        ) from None
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != width or not found.is_floating_point():
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        problem = f"holds {what}, not tokens of width {width}: it is of another model; extract it with this one"
        raise BadSample("embedding", problem, str(file))
    return found


def write_files(
    mixture: Mixture, stored: StoredEmbeddings, asking: Asking, profile: Profile, out: Path, rank: int, size: int
) -> None:
    """Write the files and rows of every `size`-th sample of a list, from `rank` on. Raises BadInput for pictures that
    are no files. What cannot be used was told before, and is left out."""
    rows: dict[Path, list[str]] = {}
    places = _places(mixture, out)
    for number in range(rank, mixture.chosen, size):
        item = mixture.item(number)
        home, stem = places[item.source]
        try:
            sample = mixture.sample(item)
            with placed(sample):
                row = _row(sample, stored, asking, profile, home / stem, item.index)
        except BadSample:
            continue
        rows.setdefault(home / f"{stem}_rank_{rank:03d}.jsonl", []).append(json.dumps(row, ensure_ascii=False) + "\n")
    for file, lines in rows.items():
        write_atomic(file, "".join(lines))


@dataclass(frozen=True)
class Filed:
    """A list in a folder of files: which of them are of it, and whether all are there.

    places  of each source the folder that its rows are written to, and the name of its files
    origin  what decides the values
    data    changes with the rows, and with what they are asked
    """

    out: Path
    places: Sequence[tuple[Path, str]]
    origin: Mapping[str, Any]
    data: str

    @classmethod
    def of(cls, mixture: Mixture, out: Path, origin: Mapping[str, Any], windows: Sequence[str]) -> "Filed":
        """windows: names of the shards that become files (`qvl_data.windows`). Raises BadInput."""
        return cls(out, _places(mixture, out), origin, hashlib.sha256(json.dumps(windows).encode()).hexdigest()[:16])

    def whole(self) -> bool:
        """Whether an extraction of this list has come to its end, and none has written over it since."""
        held = _head(self.out).get("held", {})
        return all(held.get(name) == self.data for name in self._names) and all(map(_rows, self.places))

    def begin(self) -> None:
        """Note that files are incomplete, and remove the rows that an earlier extraction wrote, perhaps of more
        processes."""
        self._note({})
        for file in chain.from_iterable(map(_rows, self.places)):
            with writing(file):
                file.unlink()

    def finish(self) -> None:
        self._note(dict.fromkeys(self._names, self.data))

    @property
    def _names(self) -> list[str]:
        return [_name(home, stem, self.out) for home, stem in self.places]

    def _note(self, held: Mapping[str, str]) -> None:
        others = {name: data for name, data in _head(self.out).get("held", {}).items() if name not in self._names}
        head = {"schema": "qvl.files/1", "about": dict(self.origin), "held": {**others, **held}}
        write_atomic(self.out / HEAD, json.dumps(head, indent=2) + "\n")


def discard(folder: Path) -> None:
    """Remove a folder. What a kill leaves of it has another name, and goes the next time."""
    aside = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.is_dir():
        with writing(folder):
            folder.rename(aside)
            shutil.rmtree(aside)


def check_heads(mixture: Mixture, origin: Mapping[str, Any], fix: str) -> list[str]:
    """Raise BadInput for files that we made with another model, template, size or type, or not to their end; the
    folders of whose files nothing is known."""
    unknown = []
    for file in (Path(data.file) for data in mixture.datasets):
        out = next((at for at in (file.parent, file.parent.parent) if (at / HEAD).is_file()), None)
        if out is None:
            unknown.append(str(file.parent))
            continue
        check_head(out, origin, fix)
        stem, ranked, _ = file.stem.rpartition("_rank_")
        if ranked and _name(file.parent, stem, out) not in _head(out).get("held", {}):
            raise BadInput(f"{file}: is of an extraction that did not come to its end; {fix}.")
    return list(dict.fromkeys(unknown))


def check_head(out: Path, origin: Mapping[str, Any], fix: str) -> None:
    """Raise BadInput if files in a folder were made by us with another model, template, size or type."""
    if not (out / HEAD).is_file():
        return
    known = _head(out).get("about", {})
    for name, value in origin.items():
        if known.get(name) != value:
            raise BadInput(f"{out / HEAD}: was made with {name} {known.get(name)}, and this is {name} {value}; {fix}.")


def _head(out: Path) -> dict[str, Any]:
    """What files.json says; nothing where there is none."""
    file = out / HEAD
    if not file.is_file():
        return {}
    try:
        said: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise BadInput(f"{file}: cannot be read; remove it, and {FILES_FIX}.") from None
    return said


def _name(home: Path, stem: str, out: Path) -> str:
    """Of the files of a source, in files.json."""
    return (home.relative_to(out) / stem).as_posix()


def _rows(place: tuple[Path, str]) -> list[Path]:
    home, stem = place
    return [*home.glob(f"{escape(stem)}_rank_[0-9][0-9][0-9].jsonl")]


def _places(mixture: Mixture, out: Path) -> list[tuple[Path, str]]:
    """Of each source the folder that its rows are written to, and the name of its files: that of its file, or of its
    shards (train-*.parquet) without the asterisk, which no file on Windows may have. Raises BadInput for two alike."""
    homes = [out / name for name in names_of(mixture)] if len(mixture.sources) > 1 else [out]
    stems = [Path(data.file).stem.replace("*", "").strip("-") or "rows" for data in mixture.datasets]
    places = list(zip(homes, stems, strict=True))
    for number, place in enumerate(places):
        if place in places[:number]:
            raise BadInput(
                f"{mixture.datasets[number].file}: its files would be written over those of "
                f"{mixture.datasets[places.index(place)].file}; give one of them another name."
            )
    return places


def _suffixes(sample: Sample, pictures: Sequence[int], text: str) -> Iterator[str]:
    """Of the files of a text about some pictures: of the target, it is the way back."""
    back = sample.edit is not None and tuple(pictures) == (sample.edit.target,)
    said = (sample.edit.inverse or {}) if back and sample.edit is not None else edit.texts(sample)
    ending = "_inv" if back else ""
    languages = [""] if not text else [language for language, one in said.items() if one == text]
    yield from (f"{SUFFIX[language]}{ending}" for language in languages if language in SUFFIX)


def _row(
    sample: Sample, stored: StoredEmbeddings, asking: Asking, profile: Profile, folder: Path, line: int
) -> dict[str, Any]:
    """A row as upstream's trainer reads it, its embeddings written. Raises BadSample."""
    questions = asking.of(sample, profile, first=True)
    shown = (*sources_of(sample), target_of(sample))
    *sources, target = (_file(sample, index) for index in shown)
    *sizes, edited = (dict(zip(("width", "height"), sample.opener.size(sample.media[at]), strict=True)) for at in shown)
    said = {"": edit.texts(sample), "_inv": (sample.edit.inverse or {}) if sample.edit is not None else {}}
    row: dict[str, Any] = {"source_image": sources, "edit_image": target}
    row |= {name: said[way].get(language, "") for way, of in TEXTS.items() for language, name in of.items()}
    row |= {"source_image_size": sizes, "edit_image_size": edited}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for question in questions:
        for text in question.texts:
            value = torch.cat(stored.pieces(sample, question.pictures, text))
            for suffix in _suffixes(sample, question.pictures, text):
                file = folder / f"{line}{suffix}.pt"
                with writing(file):
                    torch.save(value, file)
                row[COLUMN + suffix] = str(file.resolve())
    return row


def _file(sample: Sample, index: int) -> str:
    path = sample.media[index].path
    if path is None:
        raise BadInput(
            f"{sample.place}: its pictures lie in the data file, and upstream's rows name files; convert it with "
            "`qvl-data convert`, or leave out --layout files."
        )
    return str(locate(path, sample.opener.root, sample.opener.allow_root))
