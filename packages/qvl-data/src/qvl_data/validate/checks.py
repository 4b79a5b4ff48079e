"""What is looked at in one sample: its turns, its texts, its media, its regions, its length.

Everything that is wrong is told, not only the first of it. What cannot be trained on is an error; what can, but is
seldom meant, is a warning (`errors.SEVERITY`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import BadSample, TooLong, severity
from ..grounding import check as check_regions
from ..sample import CHATS, Sample
from .media import MediaCheck

SPECIAL = re.compile(
    r"<\|(?:endoftext|im_start|im_end|object_ref_start|object_ref_end|box_start|box_end|quad_start|quad_end"
    r"|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>"
)
"""The special tokens of Qwen3-VL's tokenizer."""
ENOUGH = 100
"""Problems of one sample after which nothing more is looked at in it."""
_TAG = re.compile(r"<(?:image|video)>")
_TAGGED = (
    "alpaca",
    "flat",
    "llava",
    "qwenvl",
    "sharegpt",
)  # formats in which a tag that stays text was escaped on purpose
_LOST = re.compile("\ufffd")


def _size(sizes: dict[int, tuple[int, int]], index: int) -> tuple[int, int]:
    if index not in sizes:
        raise BadSample("media_missing", "was not opened")  # and that is told already
    return sizes[index]


@dataclass
class Checks:
    """Checks samples one by one.

    pixels      decode every picture (and the first and last frame of every video); else read headers only
    processor   counts tokens, if given (`qvl_data.processor.open_processor`)
    max_length  longest sample in tokens
    """

    pixels: bool = True
    processor: Any = None
    max_length: int | None = None
    media: MediaCheck = field(init=False)

    def __post_init__(self) -> None:
        self.media = MediaCheck(self.pixels)

    def problems(self, sample: Sample) -> tuple[list[BadSample], list[bytes | None]]:
        """What is wrong with a sample, and of each of its media the hash of its content (None if it has none)."""
        found = [*_turns(sample), *_texts(sample)]
        sizes: dict[int, tuple[int, int]] = {}
        keys: list[bytes | None] = [None] * len(sample.media)
        for index in sorted(range(len(keys)), key=lambda i: sample.media[i].kind == "video"):  # after their frames
            keys[index] = self.media.check(sample, index, sizes, found)
            if len(found) >= ENOUGH:
                return found, keys
        found.extend(_edit(sample, keys))
        found.extend(check_regions(sample, partial(_size, sizes)))
        if self.processor is not None and sample.task in CHATS and not any(map(_is_uncounted, found)):
            found.extend(self._length(sample))
        return found, keys

    def _length(self, sample: Sample) -> Iterator[BadSample]:
        from ..chat import length

        try:
            tokens = length(sample, self.processor)
        except BadSample as error:
            yield error
            return
        if self.max_length is not None and tokens > self.max_length:
            yield TooLong("too_long", f"{tokens} tokens is over the limit of {self.max_length}; shorten or split it")


def _is_uncounted(error: BadSample) -> bool:
    """Whether `chat.length` would tell this again."""
    media = error.reason.startswith(("media_", "image_", "video_")) and severity(error.reason) == "error"
    return media or error.reason == "region_outside"


def _turns(sample: Sample) -> Iterator[BadSample]:
    """Questions and answers that are there."""
    answers = [message for message in sample.messages if message.role == "assistant"]
    if sample.task == "chat":
        if not answers:
            yield BadSample("no_answer", "no assistant turn; add an answer or remove the sample")
        elif not any(message.trained for message in answers):
            problem = (
                "no answer is learned from (train is false, or weight 0, in all); let one be learned, or remove it"
            )
            yield BadSample("nothing_to_learn", problem)
        first = next((message.role for message in sample.messages if message.role != "system"), None)
        if first == "assistant":
            yield BadSample("no_question", "an answer stands before any question; add the user turn that it answers")
    for number, message in enumerate(sample.messages):
        empty = not any(part.type != "text" or (part.text or "").strip() for part in message.parts)
        if message.trained and sample.task == "chat":
            if empty:
                problem = f"messages[{number}] is an empty answer; write one, or remove the turn"
                yield BadSample("empty_answer", problem)
            if any(part.media is not None for part in message.parts):
                problem = f"messages[{number}] is an answer and holds a picture, which Qwen3-VL cannot write"
                yield BadSample("media_in_answer", f"{problem}; set its `train` to false")
        elif message.role == "user" and empty:
            yield BadSample("empty_question", f"messages[{number}] is an empty question; write it, or remove the turn")


def _texts(sample: Sample) -> Iterator[BadSample]:
    """Texts that say something else to the machine than to their writer; each kind is told once, at its first place."""
    special, tags, lost = _Seen(SPECIAL), _Seen(_TAG), _Seen(_LOST)
    for where, text in _written(sample):
        if "<" in text:
            special.look(text, where)
            tags.look(text, where)
        if "\ufffd" in text:
            lost.look(text, where)
    if special.count:
        said = f"{special.where} holds {special.first} as text{special.more}; it is taken for text, not for the token"
        yield BadSample("special_token_in_text", f"{said}: remove it, unless that is meant")
    if tags.count and sample.meta.format not in _TAGGED:
        said = f"{tags.where} holds {tags.first} as text{tags.more}, which stands for no picture"
        yield BadSample("media_tag_in_text", f"{said}; make it a part of its own, or remove it")
    if lost.count:
        said = f"{lost.where} holds U+FFFD{lost.more}, what is left of characters that were read in a wrong encoding"
        yield BadSample("lost_characters", f"{said}; write the text anew from its source")


@dataclass
class _Seen:
    """How often a pattern was found in the texts of a sample, and the first of it."""

    pattern: re.Pattern[str]
    count: int = 0
    first: str = ""
    where: str = ""

    def look(self, text: str, where: str) -> None:
        for match in self.pattern.finditer(text):
            if self.count == 0:
                self.first, self.where = match[0], where
            self.count += 1

    @property
    def more(self) -> str:
        return f" (and {self.count - 1} more)" if self.count > 1 else ""


def _written(sample: Sample) -> Iterator[tuple[str, str]]:
    """Every text of a sample with where it stands."""
    for m, message in enumerate(sample.messages):
        for p, part in enumerate(message.parts):
            if part.text:
                yield f"messages[{m}].parts[{p}]", part.text
    if sample.edit is not None:
        for name in ("instruction", "inverse"):
            for lang, text in (getattr(sample.edit, name) or {}).items():
                yield f"edit.{name}.{lang}", text
    for r, region in enumerate(sample.regions):
        if region.label:
            yield f"regions[{r}].label", region.label


def _edit(sample: Sample, keys: list[bytes | None]) -> Iterator[BadSample]:
    if sample.edit is None:
        return
    if not any(text.strip() for text in sample.edit.instruction.values()):
        yield BadSample("empty_question", "an edit without an instruction; write one, or remove the sample")
    target = keys[sample.edit.target]
    if target is not None and target in [keys[source] for source in sample.edit.sources]:
        problem = "the target is the same file as a source, so there is nothing to edit; replace one of them"
        yield BadSample("edit_unchanged", problem)
