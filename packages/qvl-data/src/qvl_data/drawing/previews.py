"""Pictures drawn while a model learns: of the same few prompts each time, as `qvl_core.report.drawn` shows them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from qvl_core.files import write_atomic

from ..errors import BadSample
from ..order import order
from ..sources import Item, Mixture

T = TypeVar("T")
LOOKED_AT = 200  # samples, of which prompts that differ are taken


def first_ones(mixture: Mixture, most: int, read: Callable[[Item], tuple[object, T]]) -> list[T]:
    """The first prompts of a list that are not alike, in a shuffled order that is always the same.

    read  what tells prompts apart, and the prompt; one that raises BadSample is left out
    """
    found: dict[object, T] = {}
    for place in range(min(LOOKED_AT, mixture.chosen)):
        try:
            key, prompt = read(mixture.item(order(0, place, mixture.chosen)))
        except BadSample:
            continue
        found.setdefault(key, prompt)
        if len(found) == most:
            break
    return list(found.values())


def write_preview(
    folder: Path,
    step: int,
    number: int,
    text: str,
    shown: Sequence[Image.Image],
    picture: Image.Image,
    target: Image.Image | None = None,
) -> None:
    """What was drawn of prompt `number` after `step` steps, with all that the prompt says and shows."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:06d}-{number:02d}"
    write_atomic(folder / f"{name}.txt", text)
    write_atomic(folder / f"{name}.png", png(picture))
    for place, one in enumerate(shown):
        write_atomic(folder / f"prompt-{number:02d}-{place}.png", png(one))
    if target is not None:
        write_atomic(folder / f"target-{number:02d}.png", png(target))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
