"""Where is the 7? Two to four handwritten digits in pictures of several shapes; answers are boxes."""

from collections.abc import Iterator

from ..order import mix
from ..sample import Message, Meta, Part, Region, Sample
from .digits import LICENSE, indices
from .pictures import image
from .scenes import scene
from .split import Split

COUNTS: dict[Split, int] = {"train": 400, "validation": 50, "test": 100}
_SHAPES = ((3, 2), (2, 3), (2, 2), (4, 1))
"""Cells across and down."""


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """400, 50 and 100 samples: one digit that is asked for, or all of them, from left to right."""
    numbers = indices(split, seed)
    for index in range(COUNTS[split]):
        key = (seed, COUNTS[split], index)
        columns, rows = _SHAPES[mix(*key, 0) % len(_SHAPES)]
        count = 2 + mix(*key, 1) % 3
        chosen = [numbers[mix(*key, 2, number) % len(numbers)] for number in range(count)]
        picture, placed = scene(chosen, columns, rows, *key)
        placed.sort(key=lambda digit: digit.box)
        if mix(*key, 3) % 2:
            question = "Find every digit from left to right. Answer with boxes."
        else:
            wanted = placed[mix(*key, 4) % count].digit
            placed = [digit for digit in placed if digit.digit == wanted]
            question = f"Where is the digit {wanted}? Answer with its box."
        yield Sample(
            id=f"grounding-{split}-{index:03d}",
            task="chat",
            media=(image(picture, f"grounding/{split}-{index:03d}.png"),),
            messages=(
                Message(role="user", parts=(Part(type="image", media=0), Part(type="text", text=question))),
                Message(role="assistant", parts=(Part(type="regions", regions=tuple(range(len(placed)))),)),
            ),
            regions=tuple(Region(media=0, kind="box", xy=digit.box, label=str(digit.digit)) for digit in placed),
            meta=Meta(dataset="grounding", license=LICENSE, split=split),
        )
