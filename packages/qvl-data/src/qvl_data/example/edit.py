"""Edits that are exactly right: a photograph, an instruction in English and Chinese, and the edited photograph.

Where an edit can be undone, the inverse instruction says how.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, ImageOps

from ..order import mix
from ..sample import Edit, Meta, Sample
from .pictures import COUNTS, crop, image, opened, photo
from .split import Split

SIDE = 128


@dataclass(frozen=True)
class Change:
    """One edit: what is said, what undoes it, and what it does to a picture."""

    said: dict[str, str]
    undone: dict[str, str] | None
    make: Callable[[Image.Image], Image.Image]


def _brighter(picture: Image.Image) -> Image.Image:
    return picture.point(
        [min(255, round(255 * (value / 255) ** 0.6)) for value in range(256)] * len(picture.getbands())
    )


_MIRROR = {"en": "Mirror the picture left to right.", "zh": "左右翻转图片。"}
_UPSIDE_DOWN = {"en": "Turn the picture upside down.", "zh": "把图片上下颠倒。"}
_INVERT = {"en": "Invert the colours.", "zh": "反转颜色。"}
CHANGES = (
    Change(_MIRROR, _MIRROR, ImageOps.mirror),
    Change(_UPSIDE_DOWN, _UPSIDE_DOWN, ImageOps.flip),
    Change(_INVERT, _INVERT, ImageOps.invert),
    Change(
        {"en": "Make the picture brighter.", "zh": "调亮图片。"},
        {"en": "Make the picture darker.", "zh": "调暗图片。"},
        _brighter,
    ),
    Change(
        {"en": "Make the picture black and white.", "zh": "把图片变成黑白。"},
        None,
        lambda picture: ImageOps.grayscale(picture).convert("RGB"),
    ),
)


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """240, 30 and 60 pairs."""
    for index in range(COUNTS[split]):
        shown = photo(split, index)
        changes = CHANGES if opened(shown.name).mode == "RGB" else CHANGES[:-1]  # what is grey cannot become grey
        change = changes[mix(seed, index, 0) % len(changes)]
        source = crop(shown.name, SIDE, seed, COUNTS[split], index).convert("RGB")
        name = f"edit/{split}-{index:03d}"
        yield Sample(
            id=f"edit-{split}-{index:03d}",
            task="edit",
            media=(image(source, f"{name}-source.png"), image(change.make(source), f"{name}-target.png")),
            edit=Edit(sources=(0,), target=1, instruction=change.said, inverse=change.undone),
            meta=Meta(dataset="edit", license=shown.license, split=split),
        )
