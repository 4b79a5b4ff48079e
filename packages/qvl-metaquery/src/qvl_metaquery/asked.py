"""What is asked for: one prompt of the command line, or a file or folder of them.

    file.txt      a prompt in each line
    file.jsonl    in each line {"prompt": "...", "images": ["a.png"], ...}; GenEval's `tag` and `include` are kept
    folder        a prompt in each NAME.txt, as DPG-Bench has them

Importing this loads no torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.asked import media_file
from qvl_data.media import Opener
from qvl_data.sample import Media


@dataclass(frozen=True)
class Asked:
    """A prompt.

    name      what its pictures' files begin with; empty where there is one prompt
    pictures  that the text speaks of, in order; nothing is opened yet
    record    the line of a JSONL file as it stands there
    """

    name: str
    text: str
    pictures: tuple[Media, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    opener: Opener = field(default_factory=Opener)

    def opened(self) -> list[Image.Image]:
        """The pictures in RGB, upright. Raises BadInput for one that cannot be read."""
        return [self.opener.open(one) for one in self.pictures]


def from_command_line(text: str | None, images: Sequence[Path], file: Path | None) -> list[Asked]:
    """What --prompt, --image and --prompts say together. Raises BadInput."""
    if file is not None:
        if text is not None or images:
            raise BadInput("--prompts: has its own prompts and pictures; leave --prompt and --image out.")
        return read_prompts(file)
    if not (text or "").strip() and not images:
        raise BadInput("--prompt: is empty; say what is to be drawn.")
    return [Asked("", text or "", tuple(media_file(path, "image") for path in images))]


def read_prompts(path: Path) -> list[Asked]:
    """The prompts of a file or folder, in order. Raises BadInput, naming the line."""
    if path.is_dir():
        found = [Asked(file.stem, _text(file).strip()) for file in sorted(path.glob("*.txt"))]
        places = [str(path / f"{one.name}.txt") for one in found]
    elif path.is_file():
        lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
        places = [f"{path}:{number}" for number, _ in lines]
        read = _records if path.suffix in (".jsonl", ".json") else _plain
        found = list(read(path, places, [line.strip() for _, line in lines]))
    else:
        raise BadInput(f"{path}: there is no such file or folder of prompts.")
    for place, one in zip(places, found, strict=True):
        if not one.text and not one.pictures:
            raise BadInput(f"{place}: the prompt is empty; say what is to be drawn, or remove it.")
    if not found:
        kind = "no NAME.txt in this folder" if path.is_dir() else "no prompt in this file"
        raise BadInput(f"{path}: there is {kind}; write a prompt in each.")
    return found


def _plain(path: Path, places: Sequence[str], lines: Sequence[str]) -> Iterator[Asked]:
    for number, line in enumerate(lines):
        yield Asked(f"{number:05d}", line)


def _records(path: Path, places: Sequence[str], lines: Sequence[str]) -> Iterator[Asked]:
    opener = Opener(root=path.parent)
    for number, (place, line) in enumerate(zip(places, lines, strict=True)):
        try:
            record = json.loads(line)
        except ValueError:
            raise BadInput(f'{place}: is not JSON; write {{"prompt": "..."}} in each line.') from None
        text = record.get("prompt") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise BadInput(f'{place}: has no text under `prompt`; write {{"prompt": "..."}} in each line.')
        images = record.get("images", [])
        if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
            raise BadInput(f'{place}: `images` is no list of file names; write {{"images": ["a.png"]}}.')
        media = tuple(Media(kind="image", path=name) for name in images)
        yield Asked(f"{number:05d}", text.strip(), media, record, opener)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{file}: is not UTF-8 text; save it as UTF-8.") from None
