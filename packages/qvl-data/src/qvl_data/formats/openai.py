"""OpenAI chat messages, with the parts Qwen's own tools add.

    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "cats/1.jpg"}},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A cat."}]}

Content is a string or a list of parts: `text`, `input_text`; `image_url`, `input_image` (path, http address or base64
data URL); Qwen style `{"type": "image", "image": ...}` and `{"type": "video", "video": path or list of frames,
"fps": 2}`. What calls tools or holds hidden reasoning changes what the model is taught and is refused, never dropped.
"""

from typing import Any

from ..errors import BadSample
from ..sample import Media, Message, Part, Sample, Video
from . import register
from .common import build, media_at, source_of, unpack_extra, write_id

_ROLES = ("system", "user", "assistant", "tool")
_UNREAD = {
    "tool_calls": "write each call into the content as <tool_call>...</tool_call>",
    "function_call": "write the call into the content as <tool_call>...</tool_call>",
    "reasoning_content": "write it into the content as <think>...</think>",
    "tools": "list them in the system turn",
    "functions": "list them in the system turn",
    **dict.fromkeys(
        ("image", "images", "video", "videos"),
        'put each into the content as a part, such as {"type": "image", "image": "photos/1.jpg"}',
    ),
    "audios": "sound is not supported",
}
# type of a part -> what it becomes, and the keys under which its value may stand
_PARTS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "text": ("text", (("text",),)),
    "input_text": ("text", (("text",),)),
    "output_text": ("text", (("text",),)),
    "image_url": ("image", (("image_url", "url"), ("image_url",))),
    "input_image": ("image", (("image_url",),)),
    "image": ("image", (("image",), ("path",), ("url",), ("image_url", "url"), ("image_url",))),
    "video": ("video", (("video",), ("path",), ("url",))),
}
_CANONICAL: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "text": (("text",), {"type": "text"}),
    "image": (("image_url", "url"), {"type": "image_url", "image_url": {}}),
    "video": (("video",), {"type": "video"}),
}


@register("openai")
class OpenAI:
    def matches(self, row: Any) -> bool:
        messages = row.get("messages") if isinstance(row, dict) else None
        return (
            isinstance(messages, list)
            and bool(messages)
            and all(isinstance(message, dict) and "role" in message for message in messages)
        )

    def read(self, row: Any, place: str) -> Sample:
        return _Reader(place).read(row)

    def write(self, sample: Sample) -> Any:
        fields, layout = unpack_extra(sample)
        hints = layout.get("messages", [])
        messages = [
            _write_message(sample, message, hints[i] if i < len(hints) else {})
            for i, message in enumerate(sample.messages)
        ]
        return {**write_id(sample, layout), **fields, "messages": messages}


class _Reader:
    """Reads one row, collecting its media on the way."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.media: list[Media] = []

    def read(self, row: Any) -> Sample:
        if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
            raise self.bad('expected an object with a list "messages"')
        fields = {key: value for key, value in row.items() if key not in ("messages", "id")}
        self.refuse_unread(fields)
        messages, hints = [], []
        for index, message in enumerate(row["messages"]):
            read, hint = self.message(message, f"messages[{index}]")
            messages.append(read)
            hints.append(hint)
        layout = {"messages": hints} if any(hints) else {}
        return build("openai", self.place, row, fields, layout, self.media, messages)

    def message(self, message: Any, where: str) -> tuple[Message, dict[str, Any]]:
        if not isinstance(message, dict):
            raise self.bad(f"{where} is no object with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise self.bad(f"{where}: role {role!r} is unknown; use one of {', '.join(_ROLES)}")
        fields = {key: value for key, value in message.items() if key not in ("role", "content")}
        self.refuse_unread(fields)
        hint: dict[str, Any] = {}
        weight = fields.pop("weight", None)
        if weight is None and "weight" in message:
            fields["weight"] = None
        elif weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0):
            raise self.bad(f"{where}: weight {weight!r} is no number from 0 up")
        elif weight is not None and role != "assistant":
            fields["weight"], weight = weight, None
        if fields:
            hint["fields"] = fields
        parts: tuple[Part, ...]
        if isinstance(content, str):
            parts = (Part(type="text", text=content),)
        elif isinstance(content, list):
            read = [self.part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
            parts = tuple(part for part, _ in read)
            hint["parts"] = [part_hint for _, part_hint in read]
            if not any(hint["parts"]) and not _as_string(parts):
                del hint["parts"]  # written as parts anyway, in their usual form
        else:
            raise self.bad(f"{where}: content is neither a string nor a list of parts")
        return Message(role=role, parts=parts, weight=weight), hint

    def part(self, part: Any, where: str) -> tuple[Part, dict[str, Any]]:
        if not isinstance(part, dict):
            raise self.bad(f"{where} is no object with a type")
        name = part.get("type", next((key for key in ("text", "image", "video") if key in part), None))
        if name not in _PARTS:
            raise self.bad(f"{where}: part type {name!r} is unknown; known are {', '.join(_PARTS)}")
        kind, places = _PARTS[name]
        found = [(keys, value) for keys in places if isinstance(value := _value(part, keys), (str, list))]
        if not found:
            raise self.bad(f"{where}: no text, path or address in this {name} part")
        keys, value = found[0]
        rest = _without(part, keys)
        if kind == "video":
            self.media.append(self.video(value, rest, where))
            read = Part(type="video", media=len(self.media) - 1)
        elif isinstance(value, list):
            raise self.bad(f"{where}: a list in a part of type {name}; only videos are lists (of frames)")
        elif kind == "image":
            self.media.append(media_at(value, "image", self.place))
            read = Part(type="image", media=len(self.media) - 1)
        else:
            read = Part(type="text", text=value)
        return read, {} if (keys, rest) == _CANONICAL[kind] else {"at": list(keys), "part": rest}

    def video(self, value: str | list[Any], part: dict[str, Any], where: str) -> Media:
        fps = part.get("fps", part.get("sample_fps"))
        if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or fps <= 0):
            raise self.bad(f"{where}: fps {fps!r} is no number above 0")
        if isinstance(value, str):
            return media_at(value, "video", self.place, Video(fps=fps) if fps else None)
        if not value or not all(isinstance(frame, str) for frame in value):
            raise self.bad(f"{where}: the frames of a video are a list of paths or addresses")
        first = len(self.media)
        self.media.extend(media_at(frame, "image", self.place) for frame in value)
        return Media(kind="video", video=Video(fps=fps, frames=tuple(range(first, len(self.media)))))

    def refuse_unread(self, fields: dict[str, Any]) -> None:
        for key, hint in _UNREAD.items():
            if fields.get(key):
                raise self.bad(f'"{key}" is not read; {hint}')
        if fields.get("loss") in (False, 0):
            raise self.bad('"loss" is not read; write "weight": 0 for an answer that is not to be learned')

    def bad(self, problem: str) -> BadSample:
        return BadSample("openai", problem, self.place)


def _as_string(parts: tuple[Part, ...]) -> bool:
    """Whether a message without hints is written with a string as its content."""
    return len(parts) == 1 and parts[0].type == "text"


def _value(part: dict[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = part
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _without(part: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    rest = {key: value for key, value in part.items() if key != keys[0]}
    if len(keys) == 2:
        rest[keys[0]] = {key: value for key, value in part[keys[0]].items() if key != keys[1]}
    return rest


def _write_message(sample: Sample, message: Message, hint: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role}
    if _as_string(message.parts) and "parts" not in hint:
        row["content"] = message.parts[0].text
    else:
        hints = hint.get("parts", [])
        row["content"] = [
            _write_part(sample, part, hints[i] if i < len(hints) else {}) for i, part in enumerate(message.parts)
        ]
    if message.train is False:
        row["weight"] = 0
    elif message.weight is not None:
        row["weight"] = message.weight
    return {**row, **hint.get("fields", {})}


def _write_part(sample: Sample, part: Part, hint: dict[str, Any]) -> dict[str, Any]:
    if part.type == "regions":
        raise BadSample(
            "not_expressible", "openai messages cannot hold regions; keep this sample as qvl", "", sample.id
        )
    keys, rest = (tuple(hint["at"]), hint["part"]) if hint else _CANONICAL[part.type]
    row = dict(rest)
    value: Any = part.text
    if part.media is not None:
        media = sample.media[part.media]
        frames = media.video.frames if media.video else None
        value = source_of(media) if frames is None else [source_of(sample.media[frame]) for frame in frames]
        if media.video and media.video.fps and not {"fps", "sample_fps"} & set(row):
            row["fps"] = media.video.fps
    if len(keys) == 2:
        row[keys[0]] = {**row.get(keys[0], {}), keys[1]: value}
    else:
        row[keys[0]] = value
    return row
