"""Prompts of several kinds for the tiny model: words only, a picture, several turns; of different lengths."""

from typing import Any

from qvl_core.qwen3vl.encoded import Encoded
from qvl_data.chat import encode, prompt
from qvl_data.example.digits import digits_dataset
from qvl_data.sample import Media, Message, Part, Sample, Video


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


def clip(frames: int = 4) -> Sample:
    """A question about a picture and a clip of digits, answered twice."""
    pictures = tuple(sample.media[0] for sample in digits(frames + 1))
    video = Media(kind="video", video=Video(fps=2.0, frames=tuple(range(1, frames + 1))))
    shown = (
        Part(type="image", media=0),
        Part(type="video", media=frames + 1),
        Part(type="text", text="Do they match?"),
    )
    said: list[tuple[Any, str]] = [("assistant", "No, not all."), ("user", "Which does?"), ("assistant", "The second.")]
    messages = (
        Message(role="user", parts=shown),
        *(Message(role=role, parts=(Part(type="text", text=text),)) for role, text in said),
    )
    return Sample(id="clip", task="chat", media=(*pictures, video), messages=messages)


def talk(name: str, *turns: tuple[Any, ...]) -> Sample:
    """A chat of turns (role, part, ...), the role of an answer perhaps with its weight, `assistant*0.5`.

    A part is a text, a picture, or a tuple of pictures that are a clip.
    """
    media: list[Media] = []

    def show(picture: Media) -> int:
        media.append(picture)
        return len(media) - 1

    def part(value: Any) -> Part:
        if isinstance(value, str):
            return Part(type="text", text=value)
        if isinstance(value, Media):
            return Part(type="image", media=show(value))
        frames = tuple(map(show, value))
        return Part(type="video", media=show(Media(kind="video", video=Video(fps=2.0, frames=frames))))

    messages = []
    for role, *parts in turns:
        who, _, weight = role.partition("*")
        shown = tuple(map(part, parts))
        messages.append(Message(role=who, parts=shown, weight=float(weight) if weight else None))
    return Sample(id=name, task="chat", media=tuple(media), messages=tuple(messages))
