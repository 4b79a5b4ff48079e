r"""Conversations as Qwen's fine-tuning scripts and LLaVA write them.

    {"image": ["cats/1.jpg"], "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                                                {"from": "gpt", "value": "A cat."}]}

`image` and `video` are a path or a list of paths; the k-th `<image>` tag stands for the k-th picture. Counts are strict
both ways, text keeps its white space, system turns stay system turns. A tag in an answer is an error, since the model
cannot write a picture. `\<image>` is the literal text `<image>`.
"""

import re
from typing import Any, Literal

from ..errors import BadSample
from ..sample import Media, Message, Part, Role, Sample
from . import register
from .common import build, media_at, source_of, unpack_extra, write_id

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
_NAMES: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
_KINDS: tuple[Literal["image", "video"], ...] = ("image", "video")
_TAG = re.compile(r"(\\*)<(image|video)>")


@register("qwenvl")
class QwenVL:
    def matches(self, row: Any) -> bool:
        turns = row.get("conversations") if isinstance(row, dict) else None
        return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]

    def read(self, row: Any, place: str) -> Sample:
        if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
            raise BadSample("qwenvl", 'expected an object with a list "conversations"', place)
        for kind in _KINDS:
            if row.get(f"{kind}s"):
                raise BadSample("qwenvl", f'"{kind}s" is not read; rename it to "{kind}"', place)
        media: list[Media] = []
        slots: dict[str, list[int]] = {}
        layout: dict[str, Any] = {}
        for kind in _KINDS:
            sources = row.get(kind)
            if isinstance(sources, list):
                layout[kind] = "list"
            elif isinstance(sources, str):
                sources = [sources]
            elif sources is not None:
                raise BadSample("qwenvl", f'"{kind}" is neither a path nor a list of paths', place)
            elif kind in row:
                layout[kind] = "null"
            slots[kind] = []
            for source in sources or []:
                if not isinstance(source, str):
                    raise BadSample("qwenvl", f'"{kind}" holds something that is no path', place)
                slots[kind].append(len(media))
                media.append(media_at(source, kind, place))

        waiting = {kind: iter(indices) for kind, indices in slots.items()}
        tags: dict[str, int] = dict.fromkeys(_KINDS, 0)
        messages, hints = [], []
        for number, turn in enumerate(row["conversations"]):
            message, hint = _read_turn(turn, waiting, tags, f"conversations[{number}]", place)
            messages.append(message)
            hints.append(hint)
        for kind in _KINDS:
            _check_count(kind, tags[kind], len(slots[kind]), place)
        if any(hints):
            layout["turns"] = hints
        fields = {key: value for key, value in row.items() if key not in ("id", "conversations", *_KINDS)}
        return build("qwenvl", place, row, fields, layout, media, messages)

    def write(self, sample: Sample) -> Any:
        fields, layout = unpack_extra(sample)
        hints = layout.get("turns", [])
        used: dict[str, list[int]] = {kind: [] for kind in _KINDS}
        turns = [
            _write_turn(sample, message, used, hints[i] if i < len(hints) else {})
            for i, message in enumerate(sample.messages)
        ]
        row: dict[str, Any] = {**write_id(sample, layout), **fields}
        for kind in _KINDS:
            sources = [source_of(sample.media[index]) for index in used[kind]]
            if len(sources) == 1 and layout.get(kind) != "list":
                row[kind] = sources[0]
            elif sources or layout.get(kind) == "list":
                row[kind] = sources
            elif layout.get(kind) == "null":
                row[kind] = None
        row["conversations"] = turns
        return row


def _read_turn(
    turn: Any, waiting: dict[str, Any], tags: dict[str, int], where: str, place: str
) -> tuple[Message, dict[str, Any]]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise BadSample("qwenvl", f'{where} is no object with "from" and a text "value"', place)
    name = turn.get("from")
    if name not in _ROLES:
        raise BadSample("qwenvl", f'{where}: "from" is {name!r}; use one of {", ".join(_ROLES)}', place)
    role = _ROLES[name]
    parts: list[Part] = []
    text = ""
    last = 0
    for tag in _TAG.finditer(turn["value"]):
        slashes, kind = len(tag[1]), "image" if tag[2] == "image" else "video"
        text += turn["value"][last : tag.start()] + "\\" * (slashes // 2)
        last = tag.end()
        if slashes % 2:
            text += f"<{kind}>"
            continue
        if role == "assistant":
            problem = f"{where} is an answer and holds <{kind}> (media_tag_in_answer)"
            raise BadSample("media_tag_in_answer", rf"{problem}; remove it, or write \<{kind}> for the text", place)
        tags[kind] += 1
        if text:
            parts.append(Part(type="text", text=text))
            text = ""
        if (index := next(waiting[kind], None)) is not None:  # too many tags are reported once all are counted
            parts.append(Part(type="image" if kind == "image" else "video", media=index))
    text += turn["value"][last:]
    if text or not parts:
        parts.append(Part(type="text", text=text))
    hint: dict[str, Any] = {}
    if name != _NAMES[role]:
        hint["from"] = name
    if fields := {key: value for key, value in turn.items() if key not in ("from", "value")}:
        hint["fields"] = fields
    return Message(role=role, parts=tuple(parts)), hint


def _check_count(kind: str, tags: int, media: int, place: str) -> None:
    if tags == media:
        return
    found = f"{tags} <{kind}> tag{'s' * (tags != 1)} but {media} {kind}{'s' * (media != 1)}"
    if tags > media:
        missing = "path" if tags - media == 1 else "paths"
        fix = f'add the missing {missing} to "{kind}" or remove a tag'
    else:
        fix = f'add the missing <{kind}> to a human turn or remove a path from "{kind}"'
    raise BadSample("media_count", f"{found}; {fix}.", place)


def _write_turn(sample: Sample, message: Message, used: dict[str, list[int]], hint: dict[str, Any]) -> dict[str, Any]:
    value = ""
    for part in message.parts:
        if part.text is not None:
            value += _TAG.sub(lambda tag: "\\" * (2 * len(tag[1]) + 1) + f"<{tag[2]}>", part.text)
            continue
        media = sample.media[part.media] if part.media is not None else None
        if unsaid := _unsaid(media, message):
            problem = f"sample {sample.id}: qwenvl cannot say {unsaid}; keep it as qvl"
            raise BadSample("not_expressible", problem, sample.place, sample.id)
        used[part.type].append(part.media or 0)
        slashes = len(value) - len(value.rstrip("\\"))
        value += "\\" * slashes + f"<{part.type}>"
    if message.train is False or message.weight is not None:
        raise BadSample("not_expressible", "qwenvl cannot say which turns are trained; keep it as qvl", "", sample.id)
    return {"from": hint.get("from", _NAMES[message.role]), "value": value, **hint.get("fields", {})}


def _unsaid(media: Media | None, message: Message) -> str | None:
    """What this format has no words for, or None."""
    if media is None:
        return "regions"
    if media.bytes is not None:
        return "an embedded picture"
    if media.video and media.video.frames:
        return "a video given as frames"
    return "a picture in an answer" if message.role == "assistant" else None
