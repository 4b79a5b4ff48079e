"""LLaVA's conversations: those of Qwen's scripts with at most one picture in a row, and no video.

    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is on the bus?"}, {"from": "gpt", "value": "..."}]}

Every such row is also one of the format `qwenvl`, as which a file is recognised. This format is for writing data that
LLaVA's scripts take, and for checking that data is such: `image` is one path, its `<image>` stands once, anywhere in a
human turn; a row without a picture has no `image`.
"""

from dataclasses import replace
from typing import Any

from ..errors import BadSample
from ..sample import Sample
from . import qwenvl, register
from .reading import read_turns
from .writing import write_turns

DIALECT = replace(qwenvl.DIALECT, name="llava", data_path=False)


@register("llava")
class LLaVA(qwenvl.QwenVL):
    def read(self, row: Any, place: str) -> Sample:
        sample = read_turns(DIALECT, row, place)
        if problem := _problem(sample):
            raise BadSample("llava", f"{problem}; name the format qwenvl", place)
        return sample

    def write(self, sample: Sample) -> Any:
        if problem := _problem(sample):
            problem = f"sample {sample.id}: {problem} in llava; write it as qwenvl"
            raise BadSample("not_expressible", problem, sample.place, sample.id)
        return write_turns(DIALECT, sample)[0]


def _problem(sample: Sample) -> str | None:
    """What LLaVA's scripts do not take, or None."""
    shown = [part.type for message in sample.messages for part in message.parts]
    if "video" in shown:
        return "a row has no video"
    return f"a row has one picture, not {shown.count('image')}" if shown.count("image") > 1 else None
