"""Pictures as files: PNG that says in itself how it was drawn, and a name that says what and from which seed."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from qvl_core.errors import BadInput
from qvl_core.evaluation import write_lines
from qvl_core.files import write_atomic, writing

from ..hashing import media_key
from .prompts import Asked

LIST = "drawn.jsonl"
CHUNK = "qvl"  # of the PNG's text: JSON
_LONGEST = 60  # letters of a caption in a file's name


class Wish(NamedTuple):
    """One picture that is to be drawn."""

    asked: Asked
    seed: int

    @property
    def file_name(self) -> str:
        return file_name(self.asked.name, self.asked.text, self.seed)


def wishes_of(prompts: Sequence[Asked], number: int, seed: int) -> list[Wish]:
    """`number` pictures of each prompt; `seed` is that of the first, the following ones count up."""
    return [Wish(asked, seed + each) for asked in prompts for each in range(number)]


def said_of(wish: Wish, state: Any) -> dict[str, Any]:
    """What is drawn, to stand in its picture; `inputs` changes with the model and the content of the files it shows.

    state  JSON values that tell apart models that draw differently

    Raises BadInput.
    """
    asked = wish.asked
    shown = [media_key(one, asked.opener).hex() for one in asked.pictures]
    inputs = hashlib.sha256(json.dumps([state, shown]).encode()).hexdigest()[:16]
    images = [one.path or one.origin for one in asked.pictures]
    return {"prompt": asked.text, "images": images, "seed": wish.seed, "inputs": inputs}


def draw_missing(
    out: Path,
    how: Sequence[tuple[Wish, Mapping[str, Any]]],
    draw: Callable[[Sequence[Wish]], Iterable[Image.Image]],
    batch: int,
) -> list[Path]:
    """The files of pictures in the folder `out`, in their order, of which those that are not there yet are drawn,
    `batch` at once: the same call goes on after a kill.

    how   each wish with all that its picture depends on
    draw  pictures of wishes, in their order

    FOLDER/drawn.jsonl lists every picture with how it was drawn.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    files = [free_name(out / wish.file_name, said) for wish, said in how]
    missing = [place for place, file in enumerate(files) if not file.exists()]
    for start in range(0, len(missing), batch):
        places = missing[start : start + batch]
        for place, picture in zip(places, draw([how[place][0] for place in places]), strict=True):
            write_picture(files[place], picture, how[place][1])
    write_lines(
        out / LIST,
        [{"file": file.name, **said} for file in sorted(out.glob("*.png")) if (said := _said_in(file)) is not None],
    )
    return files


def write_picture(file: Path, picture: Image.Image, how: Mapping[str, Any]) -> None:
    """Write a PNG, whole or not at all, with `how` it was drawn as text in it."""
    said = PngInfo()
    said.add_text(CHUNK, json.dumps(how, ensure_ascii=False))
    data = io.BytesIO()
    picture.save(data, "PNG", pnginfo=said)
    write_atomic(file, data.getvalue())


def free_name(file: Path, how: Mapping[str, Any]) -> Path:
    """`file`, or where another picture lies there already the first of `NAME-2.png`, `NAME-3.png`, ... that is free."""
    number, found = 1, file
    while found.exists() and _said_in(found) != json.loads(json.dumps(how)):
        number += 1
        found = file.with_stem(f"{file.stem}-{number}")
    return found


def _said_in(file: Path) -> dict[str, Any] | None:
    try:
        return how_drawn(file)
    except (BadInput, OSError):
        return None


def how_drawn(file: Path) -> dict[str, Any]:
    """What `write_picture` has written in a PNG. Raises BadInput for another picture."""
    try:
        with Image.open(file) as picture:
            return dict(json.loads(picture.info[CHUNK]))
    except (KeyError, ValueError, UnidentifiedImageError):
        raise BadInput(f"{file}: does not say how it was drawn; only PNG files that QVL has drawn do.") from None


def file_name(name: str, caption: str, seed: int) -> str:
    """`0003-a-handwritten-seven-seed42.png`; letters of every script stay."""
    words = "-".join(re.findall(r"\w+", caption))[:_LONGEST].strip("-")
    return "-".join(part for part in (name, words, f"seed{seed}.png") if part)
