"""OpenAI chat messages, with the parts Qwen's own tools add.

    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "cats/1.jpg"}},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A cat."}]}

Content is a string or a list of parts: `text`, `input_text`; `image_url`, `input_image` (path, http address or base64
data URL); Qwen style `{"type": "image", "image": ...}` and `{"type": "video", "video": path or list of frames,
"fps": 2, "video_start": 1, "video_end": 5}`. `tool_calls`, `reasoning_content` and `tools` become the text that Qwen's
template makes of them. `weight` 0 and `loss` false leave an answer out. Text is literal, `<image>` too.
"""

from typing import Any, Literal

from ..sample import Part, Sample
from . import register
from .dialect import Dialect, is_chat
from .reading import read_turns
from .writing import write_turns


def _usual(parts: tuple[Part, ...]) -> Literal["string", "parts"]:
    return "string" if len(parts) == 1 and parts[0].type == "text" else "parts"


DIALECT = Dialect(name="openai", usual=_usual, loss="weight", embedded="url")


@register("openai")
class OpenAI:
    def matches(self, row: Any) -> bool:
        return is_chat(row, "messages", "role")

    def read(self, row: Any, place: str) -> Sample:
        return read_turns(DIALECT, row, place)

    def write(self, sample: Sample) -> Any:
        return write_turns(DIALECT, sample)[0]
