r"""ShareGPT as LLaMA-Factory and ms-swift read it: texts with tags, media in the columns `images` and `videos`.

    {"conversations": [{"from": "human", "value": "<image>Who is this?"}, {"from": "gpt", "value": "Ann."}],
     "images": ["ann.jpg"], "system": "Be brief.", "tools": "[...]"}
    {"messages": [{"role": "user", "content": "<image>Who is this?"}, {"role": "assistant", "content": "Ann."}],
     "images": ["ann.jpg"]}

`system` becomes the system turn, `tools` (a list, or its JSON text) what Qwen's template writes of them at its end,
`function_call` an answer with `<tool_call>`, `observation` a turn of the tool. With `messages`, pictures that no tag
shows come first in the first user turn, as in ms-swift; with `conversations` they are an error. `\<image>` is the
literal text. `objects` of ms-swift, which `<ref-object>` and `<bbox>` stand for, become regions.
"""

from dataclasses import replace
from typing import Any

from ..sample import Sample
from . import qwenvl, register
from .common import unpack_extra
from .dialect import Dialect, is_chat
from .reading import read_turns
from .writing import write_turns

_KEYS = ("images", "videos", "audios", "system", "tools")
_CONVERSATIONS = replace(
    qwenvl.DIALECT, name="sharegpt", columns={"image": "images", "video": "videos"}, data_path=False, loss="loss"
)
_MESSAGES = Dialect(
    name="sharegpt", columns={"image": "images", "video": "videos"}, place_first=True, loss="loss", objects=True
)


@register("sharegpt")
class ShareGPT:
    def matches(self, row: Any) -> bool:
        if is_chat(row, "conversations", "from"):
            calls = ("function_call", "observation", "tool_call", "tool_response")
            return any(key in row for key in _KEYS) or any(turn["from"] in calls for turn in row["conversations"])
        strings = is_chat(row, "messages", "role") and all(
            isinstance(turn.get("content"), str) for turn in row["messages"]
        )
        return strings and any(key in row for key in ("images", "videos", "audios", "system", "objects"))

    def read(self, row: Any, place: str) -> Sample:
        if isinstance(row, dict) and "conversations" not in row and "messages" in row:
            return read_turns(_MESSAGES, row, place, {"form": "messages"})
        return read_turns(_CONVERSATIONS, row, place)

    def write(self, sample: Sample) -> Any:
        _, layout = unpack_extra(sample, "sharegpt")
        return write_turns(_MESSAGES if layout.get("form") == "messages" else _CONVERSATIONS, sample)[0]
