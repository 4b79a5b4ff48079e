"""One row of somebody's own data set as a sample, whatever format it is in; what the collators of trainers stand on."""

from pathlib import Path
from typing import Any

from .formats import recognise
from .media import Opener
from .sample import Sample


def read_row(row: Any, place: str, media_root: Path | None = None, allow_root: tuple[Path, ...] = ()) -> Sample:
    """A row as a sample; a sample is one already.

    row         a dict in any format that qvl-data reads (chat messages with pictures as PIL images, bytes or paths,
                conversations of LLaVA or ShareGPT ...)
    place       what errors call it
    media_root  folder that relative paths of pictures start from; absolute ones must lie below an `allow_root`

    Raises BadSample.
    """
    if isinstance(row, Sample):
        return row
    return recognise(row, place).read(row, place).read_from(Opener(media_root, allow_root), place)
