"""Pictures drawn while a model learns: of the same few prompts each time, as `qvl_core.report.drawn` shows them."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from qvl_core.files import write_atomic

from ..errors import BadSample
from ..order import order
from ..shown import png
from ..sources import Item, Mixture

T = TypeVar("T")
log = logging.getLogger(__name__)
LOOKED_AT = 200  # samples, of which prompts that differ are taken


def first_ones(mixture: Mixture, most: int, read: Callable[[Item], tuple[object, T]]) -> list[T]:
    """The first prompts of a list that are not alike, in a shuffled order that is always the same.

    read  what tells prompts apart, and the prompt; one that raises BadSample is left out, and that is said
    """
    found: dict[object, T] = {}
    problems: list[BadSample] = []
    for place in range(min(LOOKED_AT, mixture.chosen)):
        try:
            key, prompt = read(mixture.item(order(0, place, mixture.chosen)))
        except BadSample as error:
            problems.append(error)
            continue
        found.setdefault(key, prompt)
        if len(found) == most:
            break
    if problems:
        told = f"previews leave {len(problems)} samples out, such as" if found else "no previews"
        log.warning("%s: %s", told, problems[0])
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
