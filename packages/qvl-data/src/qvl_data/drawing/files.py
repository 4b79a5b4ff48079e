"""Pictures as files: PNG that says in itself how it was drawn, and a name that says what and from which seed."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic

CHUNK = "qvl"  # of the PNG's text: JSON
_LONGEST = 60  # letters of a caption in a file's name


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
