"""Rows of WebDataset archives as img2dataset writes them (CC12M): a picture, its caption, and what is known of it.

    {"__key__": "00000/000000123", "jpg": bytes, "txt": b"A cat on a sofa.", "json": b'{"url": ...}'}

Text to image (task `t2i`): the caption is the user's turn, the pictures are the answer. The caption is `txt`, else
`caption` in `json`; the object in `json` is kept field by field. `png`, `webp`, ... and several pictures (`0.jpg`,
`1.jpg`) are read as well, in the order of the archive. A video cannot be drawn: it becomes a question, which its
caption answers.

Rows that `datasets` has read from such archives are the same: pictures are `{bytes, path}`, texts are text, `json` is
an object, and a member that a row does not have is null.
"""

import json
from itertools import product
from typing import Any, Literal
from urllib.parse import quote, unquote

from ..errors import BadSample
from ..json_lines import parse
from ..sample import Media, Message, Part, Sample
from ..sniff import ending
from . import register
from .cells import cell_of, media_in
from .common import build, drawing, drawn, not_expressible, unpack_extra
from .fitted import fitted

_KINDS: dict[str, Literal["image", "video"]] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"), "image"),
    **dict.fromkeys(("mp4", "webm", "mov", "mkv", "avi"), "video"),
}
_STYLES: list[dict[str, Any]] = [
    {"ensure_ascii": ascii, "indent": indent, "separators": separators}
    for ascii, indent, separators in product((True, False), (None, 2, 4), (None, (",", ":")))
]
"""How programs lay out JSON; the first that gives the same bytes is noted, so that they come back."""


@register("wds")
class WebDataset:
    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and "__key__" in row and any(_kind(name) for name in row)

    def read(self, row: Any, place: str) -> Sample:
        if not isinstance(row, dict) or not isinstance(row.get("__key__"), str) or not row["__key__"]:
            raise BadSample("wds", 'expected an object with a text "__key__"', place)
        key = row["__key__"]
        others = {name: value for name, value in row.items() if name != "__key__"}
        identity = unquote(key) if _key(unquote(key)) == key else key  # an id that `write` made a key of
        layout: dict[str, Any] = {} if identity == key else {"quoted": True}
        media = _media(key, others, layout, place)
        known = _known(others, layout, place)
        caption = _caption(others, known, layout, place)
        layout |= {"members": others} if others else {}
        shown = range(len(media))
        if media[0].kind == "image":
            return build("wds", place, {"id": identity}, known, layout, media, drawn(caption, shown), task="t2i")
        asked = Message(role="user", parts=tuple(Part(type="video", media=index) for index in shown))
        answer = Message(role="assistant", parts=(Part(type="text", text=caption),))
        return build("wds", place, {"id": identity}, known, layout, media, [asked, answer])

    @fitted
    def write(self, sample: Sample) -> Any:
        fields, layout = unpack_extra(sample, "wds")
        caption, shown = _described(sample) if sample.task == "chat" else drawing("wds", sample)
        if sample.regions or not caption.strip():
            raise not_expressible("wds", "regions" if sample.regions else "an empty caption", sample)
        names = layout.get("names", [])
        if len(names) != len(shown):
            number = [f"{i}." for i in range(len(shown))] if len(shown) > 1 else [""]
            names = [number[i] + _ending(sample.media[index]) for i, index in enumerate(shown)]
        is_key = sample.meta.format == "wds" and not layout.get("quoted")
        row: dict[str, Any] = {"__key__": sample.id if is_key else _key(sample.id)}
        cells = layout.get("cells", {})
        for name, index in zip(names, shown, strict=True):
            cell = cell_of(sample.media[index], cells.get(name, "bytes"))
            if isinstance(cell, str):
                raise not_expressible("wds", "a picture or video that is not embedded", sample)
            row[name] = cell
        if "json_id" in layout:
            index, value = layout["json_id"]
            items = list(fields.items())
            fields = dict([*items[:index], ("id", value), *items[index:]])
        if layout.get("caption") == "json":
            fields["caption"] = caption
        else:
            row["txt"] = caption if layout.get("caption") == "text" else caption.encode()
        if fields or "json" in layout:
            row["json"] = _laid_out(fields, layout.get("json", {}))
        return {**row, **layout.get("members", {})}


def _kind(name: Any) -> Literal["image", "video"] | None:
    """What a member of this name is; only what follows the last dot counts."""
    return _KINDS.get(name.rpartition(".")[2].lower()) if isinstance(name, str) else None


def _media(key: str, others: dict[str, Any], layout: dict[str, Any], place: str) -> list[Media]:
    """The row's pictures, or its videos, which leave `others`."""
    kinds = {name: kind for name, cell in others.items() if cell is not None and (kind := _kind(name))}
    media, cells = [], {}
    for name, kind in kinds.items():
        cell = others.pop(name)
        if isinstance(cell, bytes):
            media.append(Media(kind=kind, bytes=cell, origin=f"{key}.{name}"))
        elif isinstance(cell, dict):
            entry, cells[name] = media_in(cell, kind, place, name)
            media.append(entry)
        else:
            raise BadSample("media_value", f'"{name}" is {type(cell).__name__}, not the bytes of a file', place)
    if len({entry.kind for entry in media}) != 1:
        found = "pictures and videos; split them into rows" if media else "neither picture nor video; remove it"
        raise BadSample("wds", f"holds {found}", place)
    layout |= {"names": list(kinds)} | ({"cells": cells} if cells else {})
    return media


def _known(others: dict[str, Any], layout: dict[str, Any], place: str) -> dict[str, Any]:
    """The object in the member `json`, which leaves `others`; how it was laid out goes into `layout`."""
    value = others.get("json")
    if isinstance(value, (bytes, str)):
        data = value.encode() if isinstance(value, str) else value
        known = parse(data, place)
        text = data.decode()
        style = next((i for i, style in enumerate(_STYLES) if json.dumps(known, **style) == text), None)
        noted = {"as": type(value).__name__, "style": style} | ({"text": text} if style is None else {})
    else:
        known, noted = value, {"as": "value"}
    if not isinstance(known, dict):
        return {}
    del others["json"]
    layout["json"] = noted
    if "id" in known:  # the id of a sample is its key
        layout["json_id"] = [list(known).index("id"), known["id"]]
    return {name: item for name, item in known.items() if name != "id"}


def _caption(others: dict[str, Any], known: dict[str, Any], layout: dict[str, Any], place: str) -> str:
    """The caption; the member `txt` leaves `others`."""
    if others.get("txt") is None:
        caption = known.get("caption")
        layout["caption"] = "json"
    elif isinstance(caption := others.pop("txt"), str):
        layout["caption"] = "text"
    elif isinstance(caption, bytes):
        try:
            caption = caption.decode()
        except UnicodeDecodeError as error:
            problem = f"the caption is no UTF-8 (byte {error.start + 1}); save it as UTF-8"
            raise BadSample("wds", problem, place) from None
    if not isinstance(caption, str) or not caption.strip():
        problem = 'no caption; add a member "txt", or "caption" to "json", or remove the row'
        raise BadSample("no_caption", problem, place)
    return caption


def _described(sample: Sample) -> tuple[str, tuple[int, ...]]:
    """Caption and videos of a question that shows videos and an answer that describes them. Raises BadSample."""
    turns = [(message.role, {part.type for part in message.parts}) for message in sample.messages]
    if turns != [("user", {"video"}), ("assistant", {"text"})]:
        raise not_expressible("wds", "a conversation", sample)
    asked, answer = sample.messages
    if answer.train is not None or answer.weight is not None or any(media.video for media in sample.media):
        raise not_expressible("wds", "what is trained, or how a video is cut", sample)
    return answer.text, tuple(part.media for part in asked.parts if part.media is not None)


def _laid_out(value: dict[str, Any], noted: dict[str, Any]) -> Any:
    """The object for the member `json` in the layout that it had."""
    if noted.get("as") == "value":
        return value
    text = noted.get("text")
    if text is None or parse(text.encode(), "") != value:
        text = json.dumps(value, **_STYLES[noted.get("style") or 0])
    return text if noted.get("as") == "str" else text.encode()


def _ending(media: Media) -> str:
    if media.kind == "video":
        return "mp4"
    return ending(media.bytes or b"", "jpg")


def _key(identity: str) -> str:
    """An id as a key: the name of a file without its ending."""
    return quote(identity, safe="").replace(".", "%2E")
