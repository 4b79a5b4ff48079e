r"""Conversations as Qwen's fine-tuning scripts read them.

    {"image": ["cats/1.jpg"], "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                                                {"from": "gpt", "value": "A cat."}]}

`image` and `video` are a path or a list of paths; the k-th `<image>` tag stands for the k-th picture. Counts are strict
both ways, text keeps its white space, system turns stay system turns. A tag in an answer is an error, since the model
cannot write a picture. `\<image>` is the literal text `<image>`. Paths start from the row's `data_path`, if it has one;
`fps`, `video_start` and `video_end` of the row say how its videos are cut.
"""

from typing import Any

from ..sample import Role, Sample
from . import register
from .dialect import Dialect, is_chat
from .reading import read_turns
from .writing import write_turns

NAMES: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
DIALECT = Dialect(
    name="qwenvl",
    messages="conversations",
    role="from",
    content="value",
    roles=NAMES,
    columns={"image": "image", "video": "video"},
    lists=False,
    data_path=True,
)


@register("qwenvl")
class QwenVL:
    def matches(self, row: Any) -> bool:
        return is_chat(row, "conversations", "from")

    def read(self, row: Any, place: str) -> Sample:
        return read_turns(DIALECT, row, place)

    def write(self, sample: Sample) -> Any:
        return write_turns(DIALECT, sample)[0]
