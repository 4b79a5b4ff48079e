"""What the formats share: building a chat, and telling paths, addresses and data URLs apart."""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Literal

from pydantic import ValidationError

from ..errors import BadSample
from ..grounding import states_coordinates
from ..sample import Media, Message, Meta, Part, Sample, Task, Video, check_path, sentence
from .kept import keep, restore

_ADDRESS = re.compile(r"(https?|file)://|data:", re.IGNORECASE)
_MIME = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}


def build(
    name: str,
    place: str,
    row: dict[str, Any],
    fields: dict[str, Any],
    layout: dict[str, Any],
    media: list[Media],
    messages: list[Message],
    *,
    task: Task = "chat",
    meta: Mapping[str, str | None] | None = None,
    **more: Any,
) -> Sample:
    """The sample that a row in the format `name` says; unknown `fields` and `layout` hints go into `extra`.

    An id that is no text (a number, null, or none at all) is written back as it was. Coordinates in the text stay text;
    `extra.coord_space` says in which space they are, as the row's own field does, else `unknown`. Raises BadSample.

    meta, more  further fields of the sample's `meta`, and of the sample (`edit`, `regions`)
    """
    identity = row.get("id")
    fields = {key: value for key, value in fields.items() if key != "id"}
    if not isinstance(identity, str) or not identity:
        layout = {**layout, "id": {"id": identity} if "id" in row else {}}
    extra: dict[str, Any] = {key: value for key, value in (("fields", fields), ("layout", layout)) if value}
    if any(_states_coordinates(part.text or "") for message in messages for part in message.parts):
        told = row.get("coord_space")
        extra["coord_space"] = told if isinstance(told, str) else "unknown"
    try:
        kept = {name: keep(value) for name, value in extra.items()}
    except TypeError as error:
        raise BadSample(name, f"holds {error}, which cannot be kept; remove it", place) from None
    try:
        return Sample(
            id="" if identity is None else str(identity),
            task=task,
            media=tuple(media),
            messages=tuple(messages),
            meta=Meta(format=name, locator=_locator(place), **(meta or {})),
            extra=json.dumps(kept, ensure_ascii=False) if kept else None,
            **more,
        )
    except ValidationError as error:
        raise BadSample("schema", sentence(error), place) from None


def _states_coordinates(text: str) -> bool:
    """`states_coordinates`, at once for a text without any bracket."""
    return any(mark in text for mark in "[(<") and states_coordinates(text)


def _locator(place: str) -> str | None:
    """A place without its folders: `data.jsonl:12`, `train.tar:cats/0012`."""
    archive, colon, key = place.partition(".tar:")
    return f"{PurePath(archive).name}.tar:{key}" if colon else PurePath(place).name or None


def unpack_extra(sample: Sample, name: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Unknown fields and layout hints of `Sample.extra`; with `name`, only the hints of the format so called.

    Raises BadSample.
    """
    try:
        extra = restore(json.loads(sample.extra)) if sample.extra else {}
        fields, layout = extra.get("fields", {}), extra.get("layout", {})
        return {**fields}, {**layout} if name in (None, sample.meta.format) else {}
    except (AttributeError, TypeError, ValueError, ArithmeticError, RecursionError):
        raise BadSample("schema", "`extra` is no object of `fields` and `layout`", sample.place, sample.id) from None


@contextmanager
def fitting(sample: Sample) -> Iterator[None]:
    """Turn what a layout that was tampered with breaks into an error of the sample."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        problem = f"`extra.layout` does not fit the sample ({type(error).__name__}: {error}); remove it"
        raise BadSample("layout", problem, sample.place, sample.id) from None


def write_id(sample: Sample, layout: dict[str, Any]) -> dict[str, Any]:
    """The id field as it was read: `{}` where the row had none."""
    written: dict[str, Any] = layout.get("id", {"id": sample.id})
    return written


def is_address(source: str) -> bool:
    """Whether a source is an address or a data URL, no path."""
    return _ADDRESS.match(source) is not None


def media_at(source: str, kind: Literal["image", "video"], place: str, video: Video | None = None) -> Media:
    """Media behind a path or an address. Raises BadSample."""
    if is_address(source):
        return Media(kind=kind, url=source, video=video)
    try:
        check_path(source)
    except ValueError as error:
        raise BadSample("media_path", str(error), place) from None
    return Media(kind=kind, path=source, video=video)


def source_of(media: Media) -> str:
    """Path or address of media; embedded bytes as a data URL."""
    if media.bytes is None:
        return media.path or media.url or ""
    mime = media.mime or next((name for head, name in _MIME.items() if media.bytes.startswith(head)), "image/png")
    return f"data:{mime};base64,{base64.b64encode(media.bytes).decode()}"


def drawn(caption: str, pictures: Sequence[int]) -> list[Message]:
    """Text to image: the caption is the user's turn, the pictures (media indices) are the answer."""
    return [
        Message(role="user", parts=(Part(type="text", text=caption),)),
        Message(role="assistant", parts=tuple(Part(type="image", media=index) for index in pictures)),
    ]


def drawing(name: str, sample: Sample) -> tuple[str, tuple[int, ...]]:
    """Caption and pictures of text to image. Raises BadSample for what the format `name` cannot say."""
    if sample.task != "t2i":
        raise not_expressible(name, f"the task {sample.task}", sample)
    turns = [(message.role, {part.type for part in message.parts}) for message in sample.messages]
    if turns != [("user", {"text"}), ("assistant", {"image"})]:
        raise not_expressible(name, "more than one text and its pictures", sample)
    asked, answer = sample.messages
    if answer.train is not None or answer.weight is not None:
        raise not_expressible(name, "what is trained", sample)
    return asked.text, tuple(part.media for part in answer.parts if part.media is not None)


def not_expressible(name: str, what: str, sample: Sample) -> BadSample:
    """The error for a sample that the format `name` has no words for."""
    problem = f"sample {sample.id}: {name} cannot say {what}; keep it as qvl"
    return BadSample("not_expressible", problem, sample.place, sample.id)
