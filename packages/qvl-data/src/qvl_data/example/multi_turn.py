"""Conversations of three turns about one and then two handwritten digits."""

from collections.abc import Iterator

from ..order import mix
from ..sample import Message, Meta, Sample
from .digits import LICENSE, arrays, digit_media, indices
from .split import Split

COUNTS: dict[Split, int] = {"train": 600, "validation": 80, "test": 160}


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """600, 80 and 160 conversations; every answer is learned from."""
    numbers, labels = indices(split, seed), arrays()[1]
    for index in range(COUNTS[split]):
        first = numbers[index % len(numbers)]
        others = [number for number in numbers if labels[number] != labels[first]]
        second = others[mix(seed, index) % len(others)]
        a, b = int(labels[first]), int(labels[second])
        yield Sample(
            id=f"multi_turn-{split}-{index:03d}",
            task="chat",
            media=(digit_media(first), digit_media(second)),
            messages=(
                _turn("system", "Answer in as few words as you can."),
                _turn("user", "Which digit is this?", 0),
                _turn("assistant", str(a)),
                _turn("user", "Is it odd or even?"),
                _turn("assistant", "odd" if a % 2 else "even"),
                _turn("user", "Which digit is this one, and which of the two is larger?", 1),
                _turn("assistant", f"{b}, the {'first' if a > b else 'second'}"),
            ),
            meta=Meta(dataset="multi_turn", license=LICENSE, split=split),
        )


def _turn(role: str, text: str, media: int | None = None) -> Message:
    shown = [] if media is None else [{"type": "image", "media": media}]
    return Message.model_validate({"role": role, "parts": [*shown, {"type": "text", "text": text}]})
