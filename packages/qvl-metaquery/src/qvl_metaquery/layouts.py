"""Files as the official scorers read them.

    geneval   images/00000/metadata.jsonl (the prompt's line) and images/00000/samples/0000.png, 0001.png, ...
    dpg       images/NAME.png: a prompt's pictures side by side, four of them as 2 x 2

Importing this loads no torch.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_data.drawing.prompts import Asked

Style = Literal["geneval", "dpg"]
NEEDED = ("tag", "include")  # of a prompt's line, by GenEval's scorer


@dataclass(frozen=True)
class Sheet:
    """A file with the pictures of `seeds`, row by row."""

    file: Path
    asked: Asked
    seeds: tuple[int, ...]

    def joined(self, pictures: Sequence[Image.Image]) -> Image.Image:
        """The file's content; of one picture itself."""
        width, height = pictures[0].size
        columns = self._columns
        rows = math.ceil(len(pictures) / columns)
        whole = Image.new("RGB", (columns * width, rows * height))
        for place, picture in enumerate(pictures):
            whole.paste(picture, (place % columns * width, place // columns * height))
        return whole

    def picture(self, place: int) -> Image.Image:
        """One of the pictures, from the file."""
        with Image.open(self.file) as opened:
            whole = opened.convert("RGB")
        width, height = whole.width // self._columns, whole.height // math.ceil(len(self.seeds) / self._columns)
        left, top = place % self._columns * width, place // self._columns * height
        return whole.crop((left, top, left + width, top + height))

    @property
    def _columns(self) -> int:
        return math.ceil(math.sqrt(len(self.seeds)))


def style_of(prompts: Sequence[Asked]) -> Style:
    """geneval where every line has what its scorer needs, else dpg."""
    return "geneval" if all(key in asked.record for asked in prompts for key in NEEDED) else "dpg"


def check_style(prompts: Sequence[Asked], style: Style, path: Path) -> None:
    """Raise BadInput for prompts that the scorer of a style could not read."""
    if style == "dpg":
        return
    for asked in prompts:
        if lacking := [key for key in NEEDED if key not in asked.record]:
            raise BadInput(
                f"{path}: prompt {asked.name} has no `{lacking[0]}`, which GenEval's scorer needs; take its own "
                "evaluation_metadata.jsonl, or say --style dpg."
            )


def sheets(prompts: Sequence[Asked], folder: Path, style: Style, number: int, seed: int) -> list[Sheet]:
    """The files of `number` pictures of each prompt, in order."""
    seeds = tuple(seed + place for place in range(number))
    if style == "dpg":
        return [Sheet(folder / f"{asked.name}.png", asked, seeds) for asked in prompts]
    return [
        Sheet(folder / asked.name / "samples" / f"{place:04d}.png", asked, (one,))
        for asked in prompts
        for place, one in enumerate(seeds)
    ]


def prepare(sheet: Sheet, style: Style) -> None:
    """Make the folder of a file, with what belongs beside it."""
    sheet.file.parent.mkdir(parents=True, exist_ok=True)
    if style == "geneval":
        line = json.dumps(sheet.asked.record, ensure_ascii=False) + "\n"
        write_atomic(sheet.file.parent.parent / "metadata.jsonl", line)
