r"""jp1924/KoDocumentTableVisualSFT and its like: turns whose content is the JSON text of a list of parts.

    {"id": 17, "image": {"bytes": b"...", "path": null}, "metadata": {...}, "conversations": [
        {"role": "user", "content": "[{\"type\": \"image\"}, {\"type\": \"text\", \"text\": \"표는?\"}]"},
        {"role": "assistant", "content": "[{\"type\": \"text\", \"text\": \"매출이다.\"}]"}]}

Content that is no JSON list of parts is the text itself, also where it is other JSON (an answer may be a table). Order
of the parts is kept, and the exact text comes back. Parts without a value take the picture; one that nothing shows
comes first in the first user turn, as in the format `hf`.
"""

import json
from typing import Any

from ..errors import BadSample
from ..json_lines import parse
from ..sample import Sample
from . import register
from .common import fitting
from .dialect import PART_TYPES, Dialect, is_chat
from .reading import read_turns
from .writing import write_turns

DIALECT = Dialect(
    name="kodoc",
    messages="conversations",
    columns={"image": "image", "video": "video"},
    usual=lambda parts: "parts",
    place_first=True,
    loss="loss",
    embedded="cell",
)


@register("kodoc")
class KoDoc:
    def matches(self, row: Any) -> bool:
        return is_chat(row, "conversations", "role")

    def read(self, row: Any, place: str) -> Sample:
        if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
            return read_turns(DIALECT, row, place)
        turns, texts = [], {}
        for number, turn in enumerate(row["conversations"]):
            content = turn.get("content") if isinstance(turn, dict) else None
            if isinstance(content, list):
                problem = f'conversations[{number}]: "content" is a list, not its JSON text; rename "conversations" to'
                raise BadSample("kodoc", f'{problem} "messages"', place)
            parts = _parts(content, f"{place}: conversations[{number}]") if isinstance(content, str) else None
            turns.append(turn if parts is None else {**turn, "content": parts})
            if parts is not None and (_text(parts) != content or not all(_is_usual(part) for part in parts)):
                texts[str(number)] = content
        return read_turns(DIALECT, {**row, "conversations": turns}, place, {"texts": texts} if texts else {})

    def write(self, sample: Sample) -> Any:
        row, layout = write_turns(DIALECT, sample)
        with fitting(sample):
            texts = layout.get("texts", {})
            for number, turn in enumerate(row["conversations"]):
                if isinstance(turn.get("content"), list):
                    known = texts.get(str(number))
                    same = known is not None and json.loads(known) == turn["content"]
                    turn["content"] = known if same else _text(turn["content"])
        return row


def _parts(content: str, where: str) -> list[Any] | None:
    """The list of parts that a text is the JSON of, or None. Raises BadSample for parts in doubtful JSON."""
    if not content.lstrip().startswith("["):
        return None
    try:
        parts = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not parts or not all(isinstance(part, dict) and part.get("type") in PART_TYPES for part in parts):
        return None
    return list(parse(content.encode(), where))


def _is_usual(part: dict[str, Any]) -> bool:
    """Whether a part is written with its keys in this order again."""
    return list(part) in (["type", "text"], ["type"])


def _text(parts: list[Any]) -> str:
    return json.dumps(parts, ensure_ascii=False) if parts else ""  # `[]` would be read as the text it is
