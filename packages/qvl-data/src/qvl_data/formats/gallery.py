"""The pictures and videos of one row: those in columns beside the chat, shown in order, and those inside its parts.

A column (`image`, `images`, `video`, `videos`) is one value or a list. A value is a path, an address, the file itself
(`bytes`, `{bytes, path}`, a PIL picture), or, for videos, the list of its frames.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadSample
from ..media import is_absolute
from ..sample import Media, Sample, Video
from .cells import cell_of, media_in
from .common import is_address, source_of
from .tags import KINDS, Kind

_CUT = {"fps": ("fps", "sample_fps"), "start": ("video_start", "start"), "end": ("video_end", "end")}
"""Fields of `Video`, and the keys of Qwen's tools that they are read from."""
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass
class Gallery:
    """The media of a row as they are read, and those of its columns that no part has shown yet."""

    place: str
    base: str = ""
    """Folder that relative paths in columns start from (`data_path` of the row)."""
    media: list[Media] = field(default_factory=list)
    waiting: dict[Kind, list[int]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    """Media indices of each kind that stand in a column."""
    shown: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """How many were asked for, which may be more than there are."""

    def columns(self, row: dict[str, Any], key_of: dict[Kind, str]) -> tuple[set[str], dict[str, Any]]:
        """Read the columns of a row: the keys that are read, and what is needed for writing them back.

        An empty column (null, an empty text or list, a picture without bytes and path) is none. Raises BadSample.
        """
        keys: set[str] = set()
        layout: dict[str, Any] = {}
        for kind in KINDS:
            filled = [key for key in (kind, f"{kind}s") if not is_empty(row.get(key))]
            if not filled:
                continue
            if len(filled) == 2:
                raise BadSample(
                    "media_columns", f'"{filled[0]}" and "{filled[1]}" are both given; keep one', self.place
                )
            key = filled[0]
            video = clip_of(row, self.place, "the row") if kind == "video" else None
            values = row[key] if isinstance(row[key], list) else [row[key]]
            hints = []
            for number, value in enumerate(values):
                where = f'"{key}"' if values is not row[key] else f'"{key}"[{number}]'
                index, hint = self.add(value, kind, where, video, self.base)
                self.waiting[kind].append(index)
                hints.append(hint)
            keys.add(key)
            form = "list" if values is row[key] else "one"
            layout[kind] = {"key": key, "form": form} | ({"cells": hints} if any(hints) else {})
            if layout[kind] == {"key": key_of[kind], "form": "list" if key_of[kind].endswith("s") else "one"}:
                del layout[kind]
        return keys, layout

    def add(self, value: Any, kind: Kind, where: str, video: Video | None = None, base: str = "") -> tuple[int, Any]:
        """Index of the media behind a value, and what is needed for writing it back. Raises BadSample."""
        if kind == "video" and isinstance(value, list):
            if not value or not all(isinstance(frame, str) for frame in value):
                problem = f"{where}: the frames of a video are a list of paths or addresses"
                raise BadSample("media_value", problem, self.place)
            first = len(self.media)
            hints = [self.add(frame, "image", where, base=base)[1] for frame in value]
            frames = Video(**(video.model_dump() if video else {}) | {"frames": tuple(range(first, len(self.media)))})
            self.media.append(Media(kind="video", video=frames))
            return len(self.media) - 1, hints if any(hints) else None
        hint: Any
        if isinstance(value, str) and base and not is_address(value):
            joined = value if is_absolute(value) else f"{base.rstrip('/')}/{value}"
            media, hint = media_in(joined, kind, self.place, where)[0], {"whole": True} if joined == value else None
        elif hasattr(value, "save") and hasattr(value, "mode"):
            media, hint = Media(kind=kind, bytes=_encoded(value, self.place, where)), None
        else:
            media, hint = media_in(value, kind, self.place, where)
        self.media.append(media.model_copy(update={"video": video}) if video else media)
        return len(self.media) - 1, hint

    def next(self, kind: Kind, video: Video | None = None) -> int | None:
        """The next media of this kind from the columns, cut as `video` says; None when all are shown."""
        number = self.shown[kind]
        self.shown[kind] += 1
        if number >= len(self.waiting[kind]):
            return None
        index = self.waiting[kind][number]
        if video is not None:
            media = self.media[index]
            frames = media.video.frames if media.video else None
            self.media[index] = media.model_copy(update={"video": video.model_copy(update={"frames": frames})})
        return index


def clip_of(fields: dict[str, Any], place: str, where: str) -> Video | None:
    """How the keys of a part or row cut a video; None if they do not. Raises BadSample."""
    cut: dict[str, float] = {}
    for name, keys in _CUT.items():
        for key in keys:
            value = fields.get(key)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                if value is not None and key == keys[0]:
                    raise BadSample("video_cut", f"{where}: {key} {value!r:.60} is no number", place)
                continue
            if not 0 <= value < float("inf") or (value == 0 and name != "start"):
                raise BadSample("video_cut", f"{where}: {key} {value!r:.60} is no number above 0", place)
            cut.setdefault(name, float(value))
    if cut.get("end", float("inf")) <= cut.get("start", 0):
        raise BadSample("video_cut", f"{where}: the video ends before it starts", place)
    return Video.model_validate(cut) if cut else None


def cut_keys(video: Video | None) -> dict[str, float]:
    """The keys that say how a video is cut."""
    cut = {keys[0]: getattr(video, name) for name, keys in _CUT.items()} if video else {}
    return {key: value for key, value in cut.items() if value is not None}


def without_cut(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields without the keys that say how a video is cut."""
    return {key: value for key, value in fields.items() if not any(key in keys for keys in _CUT.values())}


def below(value: Any, base: str, hint: Any) -> Any:
    """What stands in a column for a value when its row has this `data_path`; None if the path lies elsewhere."""
    if isinstance(value, list):
        hints = hint if isinstance(hint, list) else [None] * len(value)
        values = [below(item, base, said) for item, said in zip(value, hints, strict=True)]
        return None if None in values else values
    if not isinstance(value, str) or is_address(value) or (hint == {"whole": True} and is_absolute(value)):
        return value
    short = value.removeprefix(f"{base.rstrip('/')}/")
    if short != value:
        return None if is_absolute(short) else short
    return value if is_absolute(value) else None


class Embedded(Exception):
    """A format has no words for a picture or video that lies inside the sample."""


def written(sample: Sample, index: int, hint: Any, embedded: str | None) -> Any:
    """The value of a column or part for one media.

    embedded  how bytes are written that did not stand in the row: `cell` ({bytes, path}), `url` (data URL), or None,
              which raises Embedded
    """
    media = sample.media[index]
    if media.video is not None and media.video.frames is not None:
        hints: Sequence[Any] = hint if isinstance(hint, list) else [None] * len(media.video.frames)
        return [written(sample, i, said, embedded) for i, said in zip(media.video.frames, hints, strict=False)]
    stood = hint if hint == "bytes" or (isinstance(hint, dict) and "keys" in hint) else None
    if media.bytes is None or stood is not None or embedded == "cell":
        return cell_of(media, stood)
    if embedded == "url":
        return source_of(media)
    raise Embedded


def is_empty(value: Any) -> bool:
    """Whether a column holds nothing: null, an empty text or list, or a picture without bytes and path."""
    return value is None or (isinstance(value, (str, list)) and not value) or value == {"bytes": None, "path": None}


def _encoded(picture: Any, place: str, where: str) -> bytes:
    """A PIL picture as a file without loss: PNG, or TIFF for the modes that PNG lacks. Raises BadSample."""
    file = io.BytesIO()
    try:
        picture.save(file, "PNG" if picture.mode in _PNG_MODES else "TIFF", exif=picture.getexif())
    except Exception as error:  # decoders raise whatever the damage leads them to
        problem = f"{where}: truncated or damaged picture ({str(error) or type(error).__name__}); replace it"
        raise BadSample("image_truncated", problem, place) from None
    return file.getvalue()
