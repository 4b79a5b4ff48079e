"""Benchmarks whose own scorers ask a judge about files: their rows, and where the files belong.

    gedit    FOLDER/fullset/TASK/LANGUAGE/KEY.png, with the source beside it as KEY_SRCIMG.png. Rows have `key`,
             `task_type`, `instruction`, `instruction_language` and `input_image`: stepfun-ai/GEdit-Bench as Parquet, or
             JSONL with paths
    imgedit  FOLDER/KEY.png. A JSON object of {KEY: {"id": PATH, "prompt": ..., "edit_type": ...}}, the sources in a
             folder that the paths start at: basic_edit.json of ImgEdit

A row's picture is looked at when the benchmark is opened, and read anew when it is needed: none stays in memory.

Read in November 2026: GEdit-Bench/generate_image_example.py of stepfun-ai/Step1X-Edit and, for the sources, the scripts
of models that call its scorer; Benchmark/Basic of PKU-YuanGroup/ImgEdit. Importing this loads no torch.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from qvl_core.errors import BadInput
from qvl_data.dataset import Rows, Shards, data_files, open_rows
from qvl_data.drawing.files import write_picture
from qvl_data.errors import BadSample
from qvl_data.formats.cells import pictures_in
from qvl_data.media import Opener
from qvl_data.order import chosen
from qvl_data.sample import Media
from qvl_edit.geometry import Geometry
from qvl_edit.wanted import Shown, Wanted

Name = Literal["gedit", "imgedit"]
GEDIT = ("key", "task_type", "instruction", "instruction_language", "input_image")
NAMES = ("task_type", "instruction_language", "key")  # of the path
IMGEDIT = ("id", "prompt", "edit_type")


@dataclass(frozen=True)
class Row:
    """One row: its kind of edit, the file of its picture, its instruction, and how its source is found."""

    key: str
    kind: str
    file: str
    text: str
    read: Callable[[], Shown]
    record: dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """The rows of a benchmark."""

    name: Name
    rows: Sequence[Row]

    def wanted(self, geometry: Geometry, most: int | None = None) -> list[Wanted]:
        """The pictures that are drawn, or a fixed random choice of `most`, each of its source's shape as `edit` draws
        it. Raises BadSample."""
        found = []
        for row in chosen(list(self.rows), most):
            shown = row.read()
            bucket = geometry.asked([shown.opener.size(shown.sources[0])[::-1]])
            found.append(Wanted(row.kind, row.key, row.file, row.text, bucket, row.read, row.record))
        return found

    def complete(self, folder: Path, wanted: Sequence[Wanted]) -> None:
        """Put beside the pictures in a folder what else the scorer reads."""
        if self.name != "gedit":
            return
        for one in wanted:
            beside = folder / one.file.replace(".png", "_SRCIMG.png")
            if not beside.is_file():
                write_picture(beside, one.sources()[0], {"source_of": one.file})


def open_benchmark(name: Name, path: Path, images: Path | None = None, allow_root: Sequence[Path] = ()) -> Benchmark:
    """The rows of a benchmark.

    images      folder that relative paths of sources start at; default: that of the file
    allow_root  further folders, for absolute ones

    Raises BadInput for what is not the benchmark's.
    """
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder of {name}.")
    opener = Opener(images or (path if path.is_dir() else path.parent), tuple(allow_root))
    rows = _gedit(path, opener) if name == "gedit" else _imgedit(path, opener)
    if not rows:
        raise BadInput(f"{path}: has no rows of {name}.")
    return Benchmark(name, rows)


def _gedit(path: Path, opener: Opener) -> list[Row]:
    files = [path] if path.is_file() else list(data_files(path, "train"))
    rows, found = Shards([open_rows(file) for file in files]), []
    for number in range(len(rows)):
        row, place = rows[number], rows.place(number)
        kind, language, key = (_name(row, field, GEDIT, place) for field in NAMES)
        text, read = _text(row["instruction"], place), partial(_shown, rows, opener, number)
        try:
            read()
        except BadSample as error:
            raise BadInput(str(error)) from None
        found.append(Row(key, kind, f"fullset/{kind}/{language}/{key}.png", text, read, {"language": language}))
    return found


def _shown(rows: Rows, opener: Opener, number: int) -> Shown:
    """The source of a row of GEdit-Bench. Raises BadSample for what is no picture."""
    media, _ = pictures_in([("input_image", rows[number]["input_image"])], rows.place(number))
    return Shown(tuple(media), None, opener)


def _imgedit(path: Path, opener: Opener) -> list[Row]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        said = None
    if not isinstance(said, dict):
        raise BadInput(f'{path}: is no JSON object of {{KEY: {{"id": ..., "prompt": ..., "edit_type": ...}}}}.')
    found = []
    for key, row in said.items():
        place = f"{path}: {key}"
        kind, key = _name(row, "edit_type", IMGEDIT, place), _name({"key": key}, "key", ("key",), place)
        shown = Shown((Media(kind="image", path=row["id"]),), None, opener)
        found.append(Row(key, kind, f"{key}.png", _text(row["prompt"], place), partial(Shown, *shown), {}))
    return found


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{place}: the instruction is empty; say what is to be done.")
    return value.strip()


def _name(row: Any, field: str, fields: Sequence[str], place: str) -> str:
    """A field that becomes part of a path."""
    if not isinstance(row, dict) or (lacking := [one for one in fields if one not in row]):
        missing = lacking[0] if isinstance(row, dict) else fields[0]
        raise BadInput(f"{place}: has no `{missing}`, which the benchmark's rows have; take its own files.")
    if not re.fullmatch(r"\w[\w.-]*", name := str(row[field])):
        raise BadInput(f"{place}: `{field}` is {name!r}, and becomes a file's name; use letters, digits, - and _.")
    return name
