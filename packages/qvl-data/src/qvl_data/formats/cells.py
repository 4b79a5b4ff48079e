"""A picture or a video as it stands in a cell of a table.

A path or an address, the file itself (`bytes`), or `{"bytes": ..., "path": ...}` as in the `Image` columns of the hub.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import chain, repeat
from typing import Any, Literal

from pydantic import ValidationError

from ..errors import BadSample
from ..sample import Media, sentence
from .common import media_at

_ENDING = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|webm|mov|mkv|avi)$", re.IGNORECASE)


def media_in(value: Any, kind: Literal["image", "video"], place: str, where: str) -> tuple[Media, Any]:
    """The media in one cell, and how it stood there (None: as a path or an address). Raises BadSample.

    where  name of the cell, for the error
    """
    if isinstance(value, str):
        return media_at(value, kind, place), None
    if isinstance(value, bytes):
        return Media(kind=kind, bytes=value), "bytes"
    if not isinstance(value, dict) or not {"bytes", "path"} & value.keys():
        found = f"an object with keys {', '.join(value)[:80]}" if isinstance(value, dict) else type(value).__name__
        problem = f"{where} is {found}; expected a path, an address, or the {kind} itself ({{bytes, path}})"
        raise BadSample("media_value", problem, place)
    data, path = value.get("bytes"), value.get("path")
    hint = {
        "keys": [key for key in ("bytes", "path") if key in value],
        "rest": {key: item for key, item in value.items() if key not in ("bytes", "path")},
    }
    if isinstance(data, bytes) and (path is None or isinstance(path, str)):
        try:
            return Media(kind=kind, bytes=data, origin=path), {**hint, "embedded": True}
        except ValidationError as error:
            raise BadSample("media_value", f"{where}: {sentence(error)}", place) from None
    if data is None and isinstance(path, str):
        return media_at(path, kind, place), hint
    raise BadSample("media_value", f"{where} holds neither bytes nor a path; remove the row, or give the {kind}", place)


def cell_of(media: Media, hint: Any) -> Any:
    """What stood in the cell. A file that has since been laid down beside the data is named by its path."""
    source = media.path if media.path is not None else media.url
    if media.bytes is None:
        if not isinstance(hint, dict) or hint.get("embedded"):
            return source
        return {**hint["rest"], **{key: source if key == "path" else None for key in hint["keys"]}}
    if hint == "bytes":
        return media.bytes
    keys = hint["keys"] if isinstance(hint, dict) and hint.get("embedded") else ["bytes", "path"]
    rest = hint["rest"] if isinstance(hint, dict) else {}
    return {**rest, **{key: media.bytes if key == "bytes" else media.origin for key in keys}}


def pictures_in(cells: Iterable[tuple[str, Any]], place: str) -> tuple[list[Media], dict[str, Any]]:
    """The pictures in named cells, and the layout hint `cells` for those that are no paths. Raises BadSample."""
    read = [media_in(value, "image", place, where) for where, value in cells]
    hints = [hint for _, hint in read]
    return [media for media, _ in read], {"cells": hints} if any(hints) else {}


def cells_of(media: Iterable[Media], layout: Mapping[str, Any]) -> list[Any]:
    """What stood in the cells that `pictures_in` read."""
    return [
        cell_of(each, hint) for each, hint in zip(media, chain(layout.get("cells", ()), repeat(None)), strict=False)
    ]


def looks_like_media(value: Any) -> bool:
    """Whether a cell, or the first of a list, would be taken for a picture or a video by who reads it."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        return bool({"bytes", "path"} & value.keys())
    return isinstance(value, bytes) or (isinstance(value, str) and bool(_ENDING.search(value)))
