"""Grounding as ms-swift writes it: `<ref-object>` and `<bbox>` in the texts, names and coordinates beside the chat.

    {"messages": [{"role": "user", "content": "<image>Find <ref-object>."}, {"role": "assistant", "content": "<bbox>"}],
     "images": ["a.jpg"], "objects": {"ref": ["the dog"], "bbox": [[10, 20, 110, 220]], "image_id": [0]}}

A `<ref-object>` becomes its name, a `<bbox>` a part of type regions: a box, or a point where it has two numbers, in
pixels of the picture `image_id` (default: the first). Only the numbers are written out (layout `plain`).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from ..errors import BadSample
from ..sample import Message, Part, Region, sentence

_TAG = re.compile("<ref-object>|<bbox>")


def ground(
    messages: Sequence[Message], objects: Any, pictures: Sequence[int], place: str
) -> tuple[list[Message], list[Region], list[list[Any]]]:
    """Messages with names and regions in place of their tags, the regions, and where each text with tags stood.

    pictures  media indices of the pictures that `image_id` counts

    Raises BadSample.
    """
    try:
        names, regions = _read(objects, pictures)
    except (ValueError, ValidationError) as error:
        problem = sentence(error) if isinstance(error, ValidationError) else str(error)
        raise BadSample("regions", f'"objects": {problem}', place) from None
    waiting: dict[str, Iterator[Any]] = {"<ref-object>": iter(names), "<bbox>": iter(range(len(regions)))}
    shown = dict.fromkeys(waiting, 0)
    grounded, stood = [], []
    for number, message in enumerate(messages):
        parts: list[Part] = []
        for part in message.parts:
            if part.text is None or not _TAG.search(part.text):
                parts.append(part)
                continue
            pieces = []
            for piece in re.split(f"({_TAG.pattern})", part.text):
                if piece not in waiting:
                    pieces += [Part(type="text", text=piece)] if piece else []
                    continue
                shown[piece] += 1
                if (found := next(waiting[piece], None)) is not None:
                    pieces.append(_shown(found))
            stood.append([number, len(parts), len(pieces), part.text])
            parts += pieces
        grounded.append(message.model_copy(update={"parts": tuple(parts)}))
    for tag, known, key in (("<ref-object>", len(names), "ref"), ("<bbox>", len(regions), "bbox")):
        if shown[tag] != known:
            problem = f'{shown[tag]} {tag} tags but {known} entries under "{key}" of "objects"; make them one for one'
            raise BadSample("regions", problem, place)
    return grounded, regions, stood


def unground(messages: Sequence[Message], stood: Sequence[Sequence[Any]]) -> list[Message]:
    """Messages with their tags in place again."""
    texts = [list(message.parts) for message in messages]
    for number, at, count, text in reversed(stood):
        texts[number][at : at + count] = [Part(type="text", text=text)]
    return [message.model_copy(update={"parts": tuple(parts)}) for message, parts in zip(messages, texts, strict=True)]


def _shown(found: str | int) -> Part:
    if isinstance(found, str):
        return Part(type="text", text=found)
    return Part(type="regions", regions=(found,), template="plain")


def _read(objects: Any, pictures: Sequence[int]) -> tuple[list[str], list[Region]]:
    """Names and regions. Raises ValueError."""
    if not isinstance(objects, dict):
        raise ValueError("is no object with `ref` and `bbox`")
    if (kind := objects.get("bbox_type")) not in (None, "real"):
        raise ValueError(f"bbox_type is {kind!r:.60}; write coordinates in pixels of the picture")
    names, boxes, images = (objects.get(key) or [] for key in ("ref", "bbox", "image_id"))
    if not all(isinstance(value, list) for value in (names, boxes, images)):
        raise ValueError("`ref`, `bbox` and `image_id` are lists")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("`ref` holds something that is no text")
    if images and (len(images) != len(boxes) or not all(type(image) is int for image in images)):
        raise ValueError(f"`image_id` is no list of {len(boxes)} numbers of pictures")
    regions = []
    for number, box in enumerate(boxes):
        image = images[number] if images else 0
        if not 0 <= image < len(pictures):
            raise ValueError(f"bbox[{number}] lies in picture {image}, but there are {len(pictures)}")
        if not isinstance(box, list) or len(box) not in (2, 4) or not all(type(value) in (int, float) for value in box):
            raise ValueError(f"bbox[{number}] is {box!r:.60}; expected x1, y1, x2, y2 or x, y in pixels")
        kind = "box" if len(box) == 4 else "point"
        regions.append(Region.model_validate({"media": pictures[image], "kind": kind, "xy": [float(v) for v in box]}))
    return names, regions
