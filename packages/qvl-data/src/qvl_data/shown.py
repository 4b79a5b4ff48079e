"""Pictures and videos of a sample as people look at them: small, and videos as a few frames."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from qvl_core.files import write_atomic
from qvl_core.spread import spread

from .errors import BadSample
from .media import Opener, locate, media_name, read_bytes
from .sample import Media, Sample

if TYPE_CHECKING:
    from .sources import Item, Mixture

FRAMES = 8
"""Frames of a video that are shown."""
PICTURES = "answers"
"""Folder of the pictures that an evaluation's answers are shown with; samples/ holds a run's previews."""
KEPT = 448  # pixels of a side of such a picture, at most
_SHARP = 128  # pixels; smaller pictures are kept exactly


def small(picture: Image.Image, side: int) -> bytes:
    """A file (PNG for small pictures, else JPEG) of a picture of at most `side` x `side` pixels; no metadata."""
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(picture.size) <= _SHARP:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=84)
    return file.getvalue()


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def frames(sample: Sample, media: Media, most: int = FRAMES) -> list[tuple[float | None, Image.Image]]:
    """Up to `most` frames of a video, evenly spread, each with its second if that is known. Raises BadSample."""
    clip = media.video
    if clip is not None and clip.frames is not None:
        numbers = spread(range(len(clip.frames)), most)
        opened = (sample.opener.open(sample.media[clip.frames[number]]) for number in numbers)
        return [
            (number / clip.fps if clip.fps else None, picture) for number, picture in zip(numbers, opened, strict=True)
        ]
    return _file_frames(media, sample.opener, most)


def _file_frames(media: Media, opener: Opener, most: int) -> list[tuple[float | None, Image.Image]]:
    from . import video

    name = media_name(media)
    if media.path is not None:
        try:
            file = locate(media.path, opener.root, opener.allow_root).open("rb")
        except OSError as error:
            raise BadSample("media_missing", f"cannot be read: {error.strerror}", name) from None
    else:
        file = io.BytesIO(read_bytes(media, opener.root, opener.allow_root))  # type: ignore[assignment]
    clip = media.video
    with file:
        header = video.probe(file, name)
        numbers = spread(video.cut(header, clip.start if clip else None, clip.end if clip else None, name), most)
        pixels = video.decode(file, name, header, numbers)
    return [(number / header.fps, Image.fromarray(frame)) for number, frame in zip(numbers, pixels, strict=True)]


def keep_picture(mixture: "Mixture", item: "Item", folder: Path, name: str) -> str | None:
    """Save the first picture of a sample, or a frame of its video, for a report; None if it has neither.

    name  of the list
    """
    sample = mixture.sample(item)
    media = next((media for media in sample.media), None)
    if media is None:
        return None
    data = _shown(sample, media)
    kind = "png" if data.startswith(b"\x89PNG") else "jpg"
    path = folder / PICTURES / f"{name}-{item.source}-{item.index}.{kind}"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, data)
    return f"{PICTURES}/{path.name}"


def _shown(sample: Sample, media: Media) -> bytes:
    """A small file of a picture, or of the frame in the middle of a video."""
    if media.kind == "image":
        return small(sample.opener.open(media), KEPT)
    shown = frames(sample, media, 3)
    return small(shown[len(shown) // 2][1], KEPT)
