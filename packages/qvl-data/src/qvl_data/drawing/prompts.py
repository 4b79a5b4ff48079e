"""What is asked for: one prompt of the command line, or a file or folder of them.

    file.txt      a prompt in each line
    file.jsonl    in each line {"prompt": "...", "images": ["a.png"], ...}, or `image` where there is one picture;
                  GenEval's `tag` and `include` are kept. A line may also be a row of edits as `formats.edit` has it:
                  its first instruction about its sources, whose target is not looked at
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

from ..asked import media_file
from ..formats import edit
from ..media import Opener
from ..row import read_row
from ..sample import Media


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


def from_command_line(
    text: str | None, images: Sequence[Path], file: Path | None, allow_root: Sequence[Path] = ()
) -> list[Asked]:
    """What --prompt, --image and --prompts say together. Raises BadInput."""
    if file is not None:
        if text is not None or images:
            raise BadInput("--prompts: has its own prompts and pictures; leave --prompt and --image out.")
        return read_prompts(file, allow_root)
    if not (text or "").strip() and not images:
        raise BadInput("--prompt: is empty; say what is to be drawn.")
    return [Asked("", text or "", tuple(media_file(path, "image") for path in images))]


def read_prompts(path: Path, allow_root: Sequence[Path] = ()) -> list[Asked]:
    """The prompts of a file or folder, in order. Raises BadInput, naming the line.

    allow_root  folders that pictures with absolute paths may lie in; relative ones lie beside the file
    """
    if path.is_dir():
        found = [Asked(file.stem, _text(file).strip()) for file in sorted(path.glob("*.txt"))]
        places = [str(path / f"{one.name}.txt") for one in found]
    elif path.is_file():
        lines = [(number, line) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
        places = [f"{path}:{number}" for number, _ in lines]
        texts = [line.strip() for _, line in lines]
        records = path.suffix in (".jsonl", ".json")
        found = list(_records(Opener(path.parent, tuple(allow_root)), places, texts) if records else _plain(texts))
    else:
        raise BadInput(f"{path}: there is no such file or folder of prompts.")
    for place, one in zip(places, found, strict=True):
        if not one.text and not one.pictures:
            raise BadInput(f"{place}: the prompt is empty; say what is to be drawn, or remove it.")
    if not found:
        kind = "no NAME.txt in this folder" if path.is_dir() else "no prompt in this file"
        raise BadInput(f"{path}: there is {kind}; write a prompt in each.")
    return found


def _plain(lines: Sequence[str]) -> Iterator[Asked]:
    for number, line in enumerate(lines):
        yield Asked(f"{number:05d}", line)


def _records(opener: Opener, places: Sequence[str], lines: Sequence[str]) -> Iterator[Asked]:
    for number, (place, line) in enumerate(zip(places, lines, strict=True)):
        try:
            record = json.loads(line)
        except ValueError:
            raise BadInput(f'{place}: is not JSON; write {{"prompt": "..."}} in each line.') from None
        is_edit = isinstance(record, dict) and "prompt" not in record and edit.EditLines().matches(record)
        text, media = _edit(record, place) if is_edit else _prompt(record, place)
        yield Asked(f"{number:05d}", text.strip(), media, record, opener)


def _prompt(record: Any, place: str) -> tuple[str, tuple[Media, ...]]:
    text = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise BadInput(f'{place}: has no text under `prompt`; write {{"prompt": "..."}} in each line.')
    if "image" in record and "images" in record:
        raise BadInput(f"{place}: has both `image` and `images`; write all pictures under `images`.")
    images = record.get("images", record.get("image")) or []
    images = [images] if isinstance(images, str) and "image" in record else images
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise BadInput(f'{place}: `images` is no list of file names; write {{"images": ["a.png"]}}.')
    return text, tuple(Media(kind="image", path=name) for name in images)


def _edit(record: dict[str, Any], place: str) -> tuple[str, tuple[Media, ...]]:
    sample = read_row(record, place)
    text = next((text for text in edit.texts(sample).values() if text.strip()), "")
    return text, tuple(sample.media[at] for at in (sample.edit.sources if sample.edit else ()))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{file}: is not UTF-8 text; save it as UTF-8.") from None
