"""Pictures travel with their samples: inside them (Parquet, tar), or as files beside the lines that name them (JSONL).

Files are laid under their own relative path, embedded ones under the path they came from or `media/<hash>`.
"""

import filecmp
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput

from .errors import BadSample, placed
from .media import Opener, data_url, image_size, is_absolute, locate, media_name, read_bytes
from .sample import Media, Sample, check_path

_ENDINGS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif"} | {
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
}


def embedded(sample: Sample) -> Sample:
    """The sample with its pictures inside, the size of each stated. Raises BadSample."""
    with placed(sample):
        media = tuple(_inside(media, sample.opener) for media in sample.media)
    return sample.model_copy(update={"media": media})


def beside(sample: Sample, folder: Path) -> Sample:
    """The sample with its pictures and videos as files below `folder`. Raises BadSample, BadInput."""
    with placed(sample):
        media = tuple(_laid(media, sample.opener, folder) for media in sample.media)
    return sample.model_copy(update={"media": media})


def _inside(media: Media, opener: Opener) -> Media:
    """A picture with its bytes inside and its size stated; videos and remote addresses stay where they are."""
    remote = media.url is not None and media.url.lower().startswith(("http://", "https://"))
    if media.kind != "image" or remote:
        return media
    if media.bytes is not None:
        return _sized(media)
    fields: dict[str, Any] = {"path": None, "url": None, "bytes": read_bytes(media, opener.root, opener.allow_root)}
    if media.url is not None and media.url.startswith("data:"):
        fields["mime"] = media.mime or data_url(media.url)[0]
    else:
        fields["origin"] = media.origin or media_name(media)
    return _sized(media.model_copy(update=fields))


def _sized(media: Media) -> Media:
    """An embedded picture with its width and height, so that lengths are known without reading it."""
    if media.width and media.height:
        return media
    try:
        width, height = image_size(media)
    except BadSample:  # told by whoever opens it
        return media
    return media.model_copy(update={"width": width, "height": height})


def _laid(media: Media, opener: Opener, folder: Path) -> Media:
    """A picture or video as a file below `folder`; what has an address or an absolute path stays where it is."""
    if media.bytes is not None:
        path = _path_of(media, media.bytes)
        _lay(media.bytes, folder / path)
        origin = None if media.origin == path else media.origin
        return media.model_copy(update={"path": path, "bytes": None, "origin": origin})
    if media.path is not None and not is_absolute(media.path):
        _lay(locate(media.path, opener.root, opener.allow_root), folder / media.path)
    return media


def _lay(content: bytes | Path, target: Path) -> None:
    """Put a file (its bytes, or a copy) where `target` says, unless it is there already. Raises BadInput."""
    if target.exists():
        same = filecmp.cmp(content, target, False) if isinstance(content, Path) else target.read_bytes() == content
        if not same:
            raise BadInput(f"{target}: another file of this name is already there; write into an empty folder.")
        return
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, part)
    else:
        part.write_bytes(content)
    os.replace(part, target)


def _path_of(media: Media, content: bytes) -> str:
    """Where an embedded picture goes: where it came from if that is a clean relative path, else by its content."""
    if media.origin is not None and not is_absolute(media.origin) and "://" not in media.origin:
        try:
            check_path(media.origin)
            return media.origin
        except ValueError:
            pass
    return f"media/{hashlib.sha256(content).hexdigest()[:32]}{_ENDINGS.get(media.mime or '', '.png')}"
