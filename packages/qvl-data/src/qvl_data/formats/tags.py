r"""`<image>` and `<video>` in a text, each standing for the next picture or video of the row.

`\<image>` is the literal text `<image>`, and a run of backslashes before a tag counts by pairs, so that every text can
be written: `join(split(text)) == text`, and `split(join(pieces)) == pieces` where texts are neither empty nor adjacent.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal, cast

Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")

# From the start of a run of backslashes on, so that a long run is read once.
_TAG = re.compile(r"(?<!\\)(\\*)<(image|video)>")


def split(text: str) -> Iterator[tuple[Kind, None] | tuple[Literal["text"], str]]:
    """The pieces of a text in order: texts that are not empty, and the kinds of media between them."""
    said, last = "", 0
    for tag in _TAG.finditer(text):
        slashes, kind = len(tag[1]), cast(Kind, tag[2])
        said += text[last : tag.start()] + "\\" * (slashes // 2)
        last = tag.end()
        if slashes % 2:
            said += f"<{kind}>"
            continue
        if said:
            yield "text", said
            said = ""
        yield kind, None
    if said := said + text[last:]:
        yield "text", said


def join(pieces: Iterable[tuple[str, str | None]]) -> str:
    """The text of such pieces."""
    text = ""
    for is_text, group in groupby(pieces, key=lambda piece: piece[1] is not None):
        if is_text:  # joined first, since a tag may lie across texts
            said = "".join(piece[1] or "" for piece in group)
            text += _TAG.sub(lambda tag: "\\" * (2 * len(tag[1]) + 1) + f"<{tag[2]}>", said)
            continue
        for kind, _ in group:
            text += "\\" * (len(text) - len(text.rstrip("\\"))) + f"<{kind}>"
    return text
