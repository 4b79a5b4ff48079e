"""The handwritten digits as pictures to be drawn, 8 x 8 pixels: by name, or from a picture that is to be inverted.

A picture belongs to the split that it has in every kind of questions about digits.
"""

from collections.abc import Iterator, Sequence

from PIL import Image, ImageOps

from ..sample import Edit, Media, Message, Meta, Part, Sample
from .digits import LICENSE, arrays, check_kinds, digit_media, indices, small
from .pictures import image
from .split import Split

KINDS = ("named", "inverted")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INVERT = {"en": "the same digit, inverted", "zh": "同一个数字，反色"}
"""It undoes itself."""


def drawings(split: Split, kinds: Sequence[str] = KINDS, seed: int = 0) -> Iterator[Sample]:
    """Each digit of a split, once for each kind: `named` (task t2i) and `inverted` (task edit)."""
    check_kinds(kinds, KINDS, "drawing")
    for index in indices(split, seed):
        for kind in kinds:
            yield named(index, split) if kind == "named" else inverted(index, split)


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """Both kinds of every digit of a split."""
    return drawings(split, KINDS, seed)


def caption(digit: int) -> str:
    """What a digit is asked for with: a handwritten seven."""
    return f"a handwritten {NAMES[digit]}"


def named(index: int, split: Split) -> Sample:
    """Digit `index` as it is, asked for by its name."""
    return Sample(
        id=f"drawings-named-{index:04d}",
        task="t2i",
        media=(_media(small(index), "named", index),),
        messages=(
            Message(role="user", parts=(Part(type="text", text=caption(int(arrays()[1][index]))),)),
            Message(role="assistant", parts=(Part(type="image", media=0),)),
        ),
        meta=Meta(dataset="drawings/named", license=LICENSE, split=split),
    )


def inverted(index: int, split: Split) -> Sample:
    """Digit `index` black on white, asked for with a larger picture of it as the source."""
    return Sample(
        id=f"drawings-inverted-{index:04d}",
        task="edit",
        media=(digit_media(index), _media(ImageOps.invert(small(index)), "inverted", index)),
        edit=Edit(sources=(0,), target=1, instruction=INVERT, inverse=INVERT),
        meta=Meta(dataset="drawings/inverted", license=LICENSE, split=split),
    )


def _media(picture: Image.Image, kind: str, index: int) -> Media:
    return image(picture, f"drawings/{kind}-{index:04d}.png")
