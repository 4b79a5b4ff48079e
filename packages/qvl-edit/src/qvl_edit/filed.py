"""Embeddings in a file for each text, as upstream's extraction lays them out: written for its trainer, read from its
folders.

OUT/NAME/LINE_en.pt            (L, D) of a text, pickled by torch; LINE counts from 0
OUT/NAME_rank_000.jsonl        rows with the paths of their embeddings and the sizes of their pictures
OUT/files.json                 ours alone: what the embeddings were made with, which training compares

A row names a file for each of its texts, `embeddings_tensor_en`, `_cn` and `_droptext`, and those of the way back with
`_inv`. Such files are pickles, so nothing but a tensor is taken from them (`weights_only`). Of upstream's own folders
nobody knows the model, template and sizes they were made with: all but the width is taken on trust.
"""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
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


def clear_rows(mixture: Mixture, out: Path) -> None:
    """Remove rows that an earlier extraction of a list wrote, perhaps of more processes."""
    for home, stem in _places(mixture, out):
        for file in home.glob(f"{escape(stem)}_rank_[0-9][0-9][0-9].jsonl"):
            with writing(file):
                file.unlink()


def write_head(out: Path, origin: Mapping[str, Any]) -> None:
    write_atomic(out / HEAD, json.dumps({"schema": "qvl.files/1", "about": dict(origin)}, indent=2) + "\n")


def check_heads(mixture: Mixture, origin: Mapping[str, Any], fix: str) -> list[str]:
    """Raise BadInput for files that we made with another model, template, size or type; the folders of whose files
    nothing is known."""
    unknown = []
    for folder in dict.fromkeys(Path(data.file).parent for data in mixture.datasets):
        head = next((at / HEAD for at in (folder, folder.parent) if (at / HEAD).is_file()), None)
        if head is None:
            unknown.append(str(folder))
            continue
        check_head(head.parent, origin, fix)
    return unknown


def check_head(out: Path, origin: Mapping[str, Any], fix: str) -> None:
    """Raise BadInput if files in a folder were made by us with another model, template, size or type."""
    if not (out / HEAD).is_file():
        return
    known = json.loads((out / HEAD).read_text(encoding="utf-8")).get("about", {})
    for name, value in origin.items():
        if known.get(name) != value:
            raise BadInput(f"{out / HEAD}: was made with {name} {known.get(name)}, and this is {name} {value}; {fix}.")


def _places(mixture: Mixture, out: Path) -> list[tuple[Path, str]]:
    """Of each source the folder that its rows are written to, and the name of its files."""
    homes = [out / name for name in names_of(mixture)] if len(mixture.sources) > 1 else [out]
    return [(home, Path(data.file).stem) for home, data in zip(homes, mixture.datasets, strict=True)]


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
