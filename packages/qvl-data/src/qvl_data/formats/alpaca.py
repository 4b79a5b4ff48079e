"""Alpaca's instructions, as LLaMA-Factory reads them.

    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day.",
     "system": "Be brief.", "history": [["Hello", "Hi."]], "images": ["a.jpg"]}

`input` stands on a line of its own after the instruction; all keys but `instruction` and `output` may be missing.
Pictures, `<image>` tags and `tools` are as in the format `sharegpt`.
"""

from typing import Any

from ..errors import BadSample
from ..sample import Sample
from . import register
from .common import fitting, not_expressible
from .dialect import Dialect
from .reading import read_turns
from .writing import write_turns

DIALECT = Dialect(name="alpaca", columns={"image": "images", "video": "videos"}, place_first=True, system=True)


@register("alpaca")
class Alpaca:
    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("instruction", "output"))

    def read(self, row: Any, place: str) -> Sample:
        if not self.matches(row):
            raise BadSample("alpaca", 'expected an object with the texts "instruction" and "output"', place)
        more, history = row.get("input"), row.get("history")
        if not (more is None or isinstance(more, str)):
            raise BadSample("alpaca", '"input" is no text', place)
        if not (history is None or (isinstance(history, list) and all(_is_pair(pair) for pair in history))):
            raise BadSample("alpaca", '"history" is no list of pairs of texts', place)
        said = [text for pair in history or () for text in pair]
        said += [_asked(row["instruction"], more), row["output"]]
        turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
        layout = {"instruction": row["instruction"], "input": more} if more else {}
        taken = {"instruction", "output"} | {key for key in ("input", "history") if row.get(key)}
        others = {key: value for key, value in row.items() if key not in taken}
        if "messages" in others:
            raise BadSample("alpaca", '"messages" beside an instruction; keep one', place)
        return read_turns(DIALECT, {**others, "messages": turns}, place, layout)

    def write(self, sample: Sample) -> Any:
        row, layout = write_turns(DIALECT, sample)
        said = [turn.get("content") for turn in row["messages"]]
        pairs = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
        if row.pop("messages") != pairs or not said or len(said) % 2 or not all(isinstance(text, str) for text in said):
            raise not_expressible("alpaca", "anything but questions and answers in turn", sample)
        asked, told = said[-2:]
        with fitting(sample):
            row["instruction"], row["output"] = asked, told
            if "input" in layout and asked == _asked(layout["instruction"], layout["input"]):
                row |= {"instruction": layout["instruction"], "input": layout["input"]}
            elif row.get("input"):
                raise not_expressible("alpaca", 'the field "input" of its original', sample)
        if len(said) > 2:
            row["history"] = [said[at : at + 2] for at in range(0, len(said) - 2, 2)]
        elif row.get("history"):
            raise not_expressible("alpaca", 'the field "history" of its original', sample)
        return row


def _asked(instruction: str, more: str | None) -> str:
    return f"{instruction}\n{more}" if more else instruction


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
