"""Rows as users have them: OpenAI messages, with pictures beside them or among their parts."""

import io
from typing import Any

from asking import digits
from PIL import Image

ANSWERS = ("It is a seven.", "Nine", "No idea, this could be any digit at all", "3")  # so that lengths differ


DIGITS = digits(16, "train")


def picture(number: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(DIGITS[number].media[0].bytes or b""))


def row(*texts: str, **columns: Any) -> dict[str, Any]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **columns}


def rows(count: int = 4) -> list[dict[str, Any]]:
    return [row("Which digit is this?", ANSWERS[i % 4], image=picture(i)) for i in range(count)]


def parts(*content: Any, answer: str = "Seven") -> dict[str, Any]:
    """One question of several parts."""
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]}
