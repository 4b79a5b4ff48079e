"""Questions about handwritten digits whose answers begin with reasoning, as the Thinking checkpoints write it."""

from collections.abc import Iterator

from ..sample import Message, Meta, Sample
from .digits import LICENSE, SPLITS, arrays, digit_media, indices
from .split import Split


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """One question about every digit of the split; what is read off the picture is said before it is judged."""
    for index, number in zip(range(*SPLITS[split]), indices(split, seed), strict=True):
        digit = int(arrays()[1][number])
        kind = "odd" if digit % 2 else "even"
        yield Sample(
            id=f"thinking-{split}-{index:04d}",
            task="chat",
            media=(digit_media(number),),
            messages=(
                _turn("user", {"type": "image", "media": 0}, "Is this digit odd or even?"),
                _turn("assistant", None, f"<think>\nThe digit is {digit}. {digit} is {kind}.\n</think>\n\n{kind}"),
            ),
            meta=Meta(dataset="thinking", license=LICENSE, split=split),
        )


def _turn(role: str, shown: dict[str, object] | None, text: str) -> Message:
    parts = [*([shown] if shown else []), {"type": "text", "text": text}]
    return Message.model_validate({"role": role, "parts": parts})
