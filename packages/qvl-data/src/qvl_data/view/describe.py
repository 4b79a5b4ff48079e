"""A sample as the page shows it: JSON without pictures, which are asked for one by one."""

from typing import Any

from qvl_core.errors import BadInput

from ..dataset import Dataset
from ..errors import BadSample
from ..media import media_name
from ..sample import Sample
from ..shown import frames, small
from .marks import Marks

SIDE = 1600
"""Pixels of a picture, at most."""
_GAP = 2  # pixels between the frames of a video


def describe(data: Dataset, marks: Marks, index: int) -> dict[str, Any]:
    """Everything about sample `index`: `error` says why it cannot be read."""
    shown: dict[str, Any] = {"index": index, "total": len(data), "place": data.rows.place(index)}
    shown |= {"mark": marks[index].mark, "comment": marks[index].comment, "counts": marks.counts()}
    try:
        return shown | _sample(data[index])
    except (BadSample, BadInput) as error:
        return shown | {"id": "", "error": str(error)}


def _sample(sample: Sample) -> dict[str, Any]:
    edit = sample.edit
    frames = {frame for media in sample.media if media.video for frame in media.video.frames or ()}
    return {
        "id": sample.id,
        "task": sample.task,
        "meta": sample.meta.model_dump(exclude_none=True),
        "messages": [
            {"role": m.role, "learned": m.trained, "parts": [p.model_dump(exclude_none=True) for p in m.parts]}
            for m in sample.messages
        ],
        "edit": edit.model_dump(exclude_none=True) if edit is not None else None,
        "regions": [region.model_dump(exclude_none=True) for region in sample.regions],
        "media": [_media(sample, number, number in frames) for number in range(len(sample.media))],
    }


def _media(sample: Sample, number: int, frame: bool) -> dict[str, Any]:
    media = sample.media[number]
    shown: dict[str, Any] = {"kind": media.kind, "name": media_name(media), "frame": frame}
    try:
        if media.kind == "image":
            shown["width"], shown["height"] = sample.opener.size(media)
    except BadSample as error:
        shown["error"] = str(error)
    return shown


def picture(sample: Sample, number: int) -> bytes:
    """A picture, or the frames of a video side by side, as a PNG or JPEG file. Raises BadSample."""
    from PIL import Image

    media = sample.media[number]
    if media.kind == "image":
        return small(sample.opener.open(media), SIDE)
    shown = [frame for _, frame in frames(sample, media)]
    width, height = max(frame.width for frame in shown), max(frame.height for frame in shown)
    across = min(len(shown), 4)
    sheet = Image.new(
        "RGB", (across * (width + _GAP) - _GAP, -(-len(shown) // across) * (height + _GAP) - _GAP), "grey"
    )
    for place, frame in enumerate(shown):
        sheet.paste(frame, (place % across * (width + _GAP), place // across * (height + _GAP)))
    return small(sheet, SIDE)
