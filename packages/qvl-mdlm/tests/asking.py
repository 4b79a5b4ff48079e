"""Prompts of several kinds for the tiny model: words only, a picture, several turns; of different lengths."""

from typing import Any

from qvl_core.qwen3vl.encoded import Encoded
from qvl_data.chat import encode, prompt
from qvl_data.example.digits import digits_dataset
from qvl_data.sample import Message, Part, Sample


def digits(count: int, split: str = "test") -> list[Sample]:
    return list(digits_dataset("digit", split, 0))[:count]


def chat(*texts: str, media: Any = ()) -> Sample:
    """User and assistant in turn; a picture, if there is one, in the first question."""
    messages = []
    for place, text in enumerate(texts):
        parts = [Part(type="image", media=0)] if media and place == 0 else []
        messages.append(Message(role=("user", "assistant")[place % 2], parts=(*parts, Part(type="text", text=text))))
    return Sample(id="chat", task="chat", media=tuple(media), messages=tuple(messages))


def samples() -> list[Sample]:
    picture = digits(1)[0].media
    return [
        chat("What is one and two?", "Three, of course."),
        chat("Which digit is this?", "It is a seven.", media=picture),
        chat("Is it odd?", "Yes.", "Why do you think so, and are you sure of it?", "It is not even."),
        chat("Look.", "I do.", "Which digit is it?", "Seven it is, I am quite sure.", media=picture),
    ]


def prompts(processor: Any) -> list[Encoded]:
    return [prompt(sample, processor)[0] for sample in samples()]


def encoded(processor: Any, **options: Any) -> list[Encoded]:
    return [encode(sample, processor, **options) for sample in samples()]
