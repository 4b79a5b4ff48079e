"""A prompt as the tokens that stand before the queries: system turn, pictures and caption, the opening of an answer.

    prompt = encode(Prompt("a red fox", (picture,)), processor, layout)       # Encoded, without labels

The text of a caption is only ever text: what looks like a special token, a query or a marker is cut into ordinary
tokens. An answer's opening is followed by a new line, as in the upstream layout (facts: docs/metaquery/model.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_data import chat
from qvl_data.sample import Media, Message, Part, Sample
from qvl_metaquery.budget import within
from qvl_metaquery.settings import SYSTEM

REMEMBERED = 256  # texts
TOKEN = 32  # side, in pixels, of the square that one token covers


@dataclass(frozen=True)
class Prompt:
    """What is to be drawn: a text, and pictures that it speaks of, in order. Both may be empty."""

    text: str = ""
    pictures: tuple[Image.Image, ...] = ()

    def without(self, text: bool = False, pictures: bool = False) -> "Prompt":
        """The prompt with its text empty, or with its pictures black."""
        black = tuple(Image.new("RGB", picture.size) for picture in self.pictures)
        return Prompt("" if text else self.text, black if pictures else self.pictures)


@dataclass(frozen=True)
class PromptLayout:
    """How prompts are laid out.

    system          text of the system turn
    caption_tokens  a longer text is cut
    image_tokens    at most, of all pictures of a prompt together; None: each as the processor has it
    """

    system: str = SYSTEM
    caption_tokens: int = 256
    image_tokens: int | None = None


def encode(prompt: Prompt, processor: Any, layout: PromptLayout, name: str = "prompt") -> Encoded:
    """The tokens before the queries, and the pictures. Raises BadSample for a picture of an impossible shape, and
    for more pictures than they may have tokens.
    """
    if prompt.pictures:
        return _encode(prompt, processor, layout, name)
    return replace(_said(prompt.text, processor, layout), id=name)


@lru_cache(maxsize=REMEMBERED)
def _said(text: str, processor: Any, layout: PromptLayout) -> Encoded:
    """A text alone: some come again and again, the empty one above all. Nobody writes to the arrays that they share."""
    return _encode(Prompt(text), processor, layout, "prompt")


def _encode(prompt: Prompt, processor: Any, layout: PromptLayout, name: str) -> Encoded:
    text = shortened(prompt.text, processor.tokenizer, layout.caption_tokens)
    pictures: Sequence[Image.Image] = [picture.convert("RGB") for picture in prompt.pictures]
    if pictures and layout.image_tokens is not None:
        pictures, processor = within(pictures, layout.image_tokens, processor, name)
    shown = [Part(type="image", media=index) for index in range(len(pictures))]
    sample = Sample(
        id=name,
        task="chat",
        media=tuple(Media(kind="image", path=f"{name}-{index}") for index in range(len(pictures))),
        messages=(
            Message(role="system", parts=(Part(type="text", text=layout.system),)),
            Message(role="user", parts=(*shown, Part(type="text", text=text))),
            Message(role="assistant", parts=(Part(type="text", text="-"),)),
        ),
    )
    return _with_new_line(chat.prompt(sample, processor, images=pictures)[0], processor.tokenizer)


def shortened(text: str, tokenizer: Any, limit: int) -> str:
    """The text's first `limit` tokens."""
    ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(ends) <= limit else text[: ends[limit - 1][1]]


def _with_new_line(prompt: Encoded, tokenizer: Any) -> Encoded:
    """The answer's opening with a new line more, as one text: two new lines may be one token."""
    start = int(np.flatnonzero(prompt.ids == tokenizer.convert_tokens_to_ids("<|im_start|>"))[-1]) + 1
    opening = tokenizer.decode(prompt.ids[start:])
    tail = np.array(tokenizer(opening + "\n", add_special_tokens=False)["input_ids"], np.int64)
    ids = np.concatenate([prompt.ids[:start], tail])
    return replace(
        prompt,
        ids=ids,
        labels=np.full(len(ids), IGNORE),
        types=np.concatenate([prompt.types[:start], np.zeros(len(tail), np.int64)]),
        weights=None,
    )
