"""The one reader and the one writer of chats as lists of turns; each format is a `Dialect` of them.

    {"messages": [{"role": ..., "content": text or parts}, ...], "images": [...]}          role and content
    {"conversations": [{"from": ..., "value": text}, ...], "image": ...}                   from and value

What the sample has no field for (other keys, how a thing was spelt, where it stood) is kept in `extra.layout` and
`extra.fields`. A hint is used only if it still fits the sample: `read(write(sample))` says what the sample says.

    layout: {"messages": [hint of each turn], "image": hint of the column, "system": ..., "tools": ..., "placed": [...],
             "objects": as they stood, "grounded": where texts with their tags stood}
    turn:   {"role": as it was spelt, "fields": other keys, "said": call as it stood, "content": string | parts | null,
             "parts": [hint of each part], "reasoning_content": ..., "tool_calls": ..., "function_call": ...}
    part:   {"at": keys of the value, "part": the rest of it, "n": parts of the sample that a text became}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..sample import Part, Role
from .tags import Kind
from .tools import calls_text

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "tool_response", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
CALLS = ("function_call", "tool_call")
LEARNED = ("loss", "train")
"""Keys of a turn that are false where it is not learned from."""
COLUMNS = ("image", "images", "video", "videos")
_SOUND = dict.fromkeys(("audio", "audios"), "sound is not supported")
UNREAD_IN_ROWS = {"functions": 'rename it to "tools"', **_SOUND}
UNREAD_IN_TURNS = dict.fromkeys(("reasoning", "thinking"), 'rename it to "reasoning_content"') | _SOUND
# type of a part -> what it becomes, and the keys under which its value may stand
PARTS: dict[str, tuple[Literal["text", "image", "video"], tuple[tuple[str, ...], ...]]] = {
    "text": ("text", (("text",),)),
    "input_text": ("text", (("text",),)),
    "output_text": ("text", (("text",),)),
    "image_url": ("image", (("image_url", "url"), ("image_url",))),
    "input_image": ("image", (("image_url",),)),
    "image": ("image", (("image",), ("path",), ("url",), ("image_url", "url"), ("image_url",))),
    "video": ("video", (("video",), ("path",), ("url",))),
}
PART_TYPES = tuple(PARTS)


@dataclass(frozen=True)
class Dialect:
    """What tells one format of turns from another."""

    name: str
    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    roles: dict[Role, str] = field(
        default_factory=lambda: {role: role for role in ("system", "user", "assistant", "tool")}
    )
    """How a role is written."""
    columns: dict[Kind, str] | None = None
    """Columns that media are written to, shown by tags and by parts without a value; None: media stand in the parts."""
    lists: bool = True
    """Whether content may be a list of parts."""
    usual: Callable[[tuple[Part, ...]], Literal["string", "parts"]] = lambda parts: "string"
    """Whether content is written as a text or as parts."""
    place_first: bool = False
    """Whether media that nothing shows come first in the first user turn, instead of being an error."""
    loss: Literal["weight", "loss"] | None = None
    """Key that says which turns are learned from."""
    embedded: Literal["cell", "url"] | None = None
    """How embedded media are written: `{bytes, path}`, a data URL, or not at all."""
    system: bool = False
    """Whether the system turn is written as a key of the row, wherever it stood."""
    objects: bool = False
    """Whether `objects` hold the names and boxes that tags in the texts stand for."""
    data_path: bool = False
    """Whether the paths of a row start from its `data_path`."""


def is_chat(row: Any, messages: str, role: str) -> bool:
    """Whether a row has a list of turns under this key, the first of which names its role under that."""
    turns = row.get(messages) if isinstance(row, dict) else None
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) and role in turn for turn in turns)


def is_left_out(fields: Mapping[str, Any]) -> bool:
    """Whether the keys of an answer say that it is not learned from."""
    return any(fields.get(key) in (False, 0) for key in LEARNED)


def calls_of(value: Any) -> str:
    return calls_text([value] if isinstance(value, dict) else value)


def says(parts: tuple[Part, ...]) -> bool:
    """Whether parts are more than empty texts."""
    return any(part.text != "" for part in parts)


def usual_part(kind: str, columns: bool) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Where the value of a part stands, and the rest of it, unless a hint says otherwise."""
    if kind == "text":
        return ("text",), {"type": "text"}
    if columns:
        return (), {"type": kind}
    if kind == "image":
        return ("image_url", "url"), {"type": "image_url", "image_url": {}}
    return ("video",), {"type": "video"}
