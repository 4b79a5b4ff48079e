"""Chats as they lie on the hub: `messages` beside a column `images` (or `image`, `videos`), or pairs of `texts`.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
     "images": [{"bytes": b"...", "path": "1.jpg"}]}
    {"images": [...], "texts": [{"user": "What is this?", "assistant": "A cat."}], "source": "..."}

Parts without a value, and `<image>` tags in texts, take the pictures in order; keys that are null because Arrow gives
all parts the same ones count as missing. Pictures that nothing shows come first in the first user turn. A picture is
`{bytes, path}` (an undecoded `Image` of datasets), raw bytes, a path, an address, or a PIL picture, which is encoded as
PNG. `texts` is the layout of The Cauldron and FineVision, which nanoVLM trains on.
"""

from typing import Any

from ..errors import BadSample
from ..sample import Sample
from . import register
from .common import fitting
from .dialect import Dialect, is_chat
from .reading import read_turns
from .writing import write_turns

DIALECT = Dialect(
    name="hf",
    columns={"image": "images", "video": "videos"},
    usual=lambda parts: "parts",
    place_first=True,
    loss="loss",
    embedded="cell",
)
_COLUMNS = ("image", "images", "video", "videos")
_PAIR = ("user", "assistant")


@register("hf")
class HF:
    def matches(self, row: Any) -> bool:
        if is_chat(row, "messages", "role"):
            return any(key in row for key in _COLUMNS) or any(
                isinstance(part, dict) and part.get("type") in ("image", "video") and not _has_value(part)
                for turn in row["messages"]
                if isinstance(turn.get("content"), list)
                for part in turn["content"]
            )
        pairs = row.get("texts") if isinstance(row, dict) else None
        return isinstance(pairs, list) and bool(pairs) and all(_is_pair(pair) for pair in pairs)

    def read(self, row: Any, place: str) -> Sample:
        if not isinstance(row, dict) or "messages" in row or "texts" not in row:
            return read_turns(DIALECT, row, place)
        if not isinstance(row["texts"], list) or not all(_is_pair(pair) for pair in row["texts"]):
            raise BadSample("hf", '"texts" is no list of pairs, each with a text under "user" and "assistant"', place)
        turns = [{"role": role, "content": pair[role]} for pair in row["texts"] for role in _PAIR]
        rest = [{key: value for key, value in pair.items() if key not in _PAIR} for pair in row["texts"]]
        others = {key: value for key, value in row.items() if key != "texts"}
        return read_turns(DIALECT, {**others, "messages": turns}, place, {"texts": rest})

    def write(self, sample: Sample) -> Any:
        row, layout = write_turns(DIALECT, sample)
        with fitting(sample):
            pairs = _pairs(row["messages"], layout["texts"]) if "texts" in layout else None
        if pairs is None:
            return row
        return {**{key: value for key, value in row.items() if key != "messages"}, "texts": pairs}


def _has_value(part: dict[str, Any]) -> bool:
    return any(part.get(key) is not None for key in ("image", "video", "path", "url", "image_url"))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, dict) and all(isinstance(pair.get(role), str) for role in _PAIR)


def _pairs(turns: list[dict[str, Any]], rest: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Turns as pairs of question and answer with their other keys; None if they no longer are such pairs."""
    if [turn["role"] for turn in turns] != list(_PAIR) * len(rest):
        return None
    if not all(turn.keys() == {"role", "content"} and isinstance(turn["content"], str) for turn in turns):
        return None
    said = [turn["content"] for turn in turns]
    return [
        {"user": asked, "assistant": told, **more}
        for asked, told, more in zip(said[::2], said[1::2], rest, strict=True)
    ]
