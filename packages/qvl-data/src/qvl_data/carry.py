"""Pictures travel with their samples: inside them (Parquet, tar), or as files beside the lines that name them (JSONL).
Videos are files beside all of these.

Files are laid under their own relative path, embedded ones under the path they came from. What has no name fit for a
media file, or one under which other content lies already, is laid as `media/<hash>`.
"""

import filecmp
import hashlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.files import sha256

from .errors import BadSample, placed
from .media import Opener, data_url, image_size, is_absolute, locate, media_name, read_bytes
from .sample import Media, Sample, check_path
from .sniff import ending

_ENDINGS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif"} | {
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
}
_PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
_FOREIGN = (".avif", ".heic", ".jp2", ".jxl", ".ppm", ".pgm", ".dcm")  # not read, and told by whoever opens them
_VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp")
_UNFIT = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$')  # in names on Windows
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # there, whatever the ending
_LONGEST = 200
"""Bytes of a name; file systems take 255, and a file that is being written has a longer one."""


def embedded(sample: Sample, folder: Path | None = None) -> Sample:
    """The sample with its pictures inside, the size of each stated; its videos as files below `folder`, if given.

    Raises BadSample, BadInput.
    """
    with placed(sample):
        media = tuple(
            _inside(one, sample.opener)
            if one.kind == "image" or one.bytes is not None or folder is None
            else _laid(one, sample.opener, folder)
            for one in sample.media
        )
    return sample.model_copy(update={"media": media})


def enclosed(sample: Sample) -> Sample:
    """The sample with its pictures and videos inside, byte for byte. Raises BadSample."""
    root, allowed = sample.opener.root, sample.opener.allow_root
    contents = [media.bytes if media.bytes is not None else read_bytes(media, root, allowed) for media in sample.media]
    inside = [{"path": None, "url": None, "bytes": content} for content in contents]
    media = tuple(media.model_copy(update=fields) for media, fields in zip(sample.media, inside, strict=True))
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
        named = media.origin if media.origin is not None and _is_clean(media.origin) else None
        path = _lay(media.bytes, folder, named, _ending(media))
        origin = None if media.origin == path else media.origin
        return media.model_copy(update={"path": path, "bytes": None, "origin": origin})
    if media.path is not None and not is_absolute(media.path):
        path = media.origin if media.origin is not None and _is_clean(media.origin) else media.path
        file, target = locate(media.path, opener.root, opener.allow_root), folder / path
        if not _names_media(path) and not (target.exists() and target.samefile(file)):
            return _laid(
                media.model_copy(update={"path": None, "bytes": file.read_bytes(), "origin": media.path}),
                opener,
                folder,
            )
        laid = _lay(file, folder, path, PurePosixPath(path).suffix.lower())
        origin = media.origin or (None if laid == path else path)
        return media.model_copy(update={"path": laid, "origin": None if origin == laid else origin})
    return media


def _lay(content: bytes | Path, folder: Path, path: str | None, ending: str) -> str:
    """Put a file (its bytes, or a copy) below `folder`, at `path` if nothing else is there, else at `media/<hash>`.

    Returns where it lies. What is there already is left as it is. Raises BadInput.
    """
    if path is not None and _put(content, folder / path):
        return path
    digest = sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
    path = f"media/{digest[:32]}{ending}"
    if not _put(content, folder / path):
        raise BadInput(f"{folder / path}: something else is already there; write into an empty folder.")
    return path


def _put(content: bytes | Path, target: Path) -> bool:
    """Write a file where nothing is; whether `target` now holds the content."""
    if target.exists():
        return _holds(target, content)
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # a file is called as the folder would be
        return False
    if isinstance(content, Path):
        shutil.copyfile(content, part)
    else:
        part.write_bytes(content)
    os.replace(part, target)
    return True


def _holds(target: Path, content: bytes | Path) -> bool:
    """Whether what is at `target` is a file of this content."""
    if isinstance(content, Path):
        return target.is_file() and filecmp.cmp(content, target, False)
    return target.is_file() and target.stat().st_size == len(content) and target.read_bytes() == content


def _is_clean(origin: str) -> bool:
    """Whether embedded media can be laid where they came from: below the folder, under the name of a media file."""
    if is_absolute(origin) or "://" in origin or not _names_media(origin):
        return False
    try:
        check_path(origin)
    except ValueError:
        return False
    return True


def _names_media(path: str) -> bool:
    """Whether a path is one of a picture or video, on every system.

    Data decides about names: none may become a script, a setting or a data file beside the lines.
    """
    names = path.split("/")
    return path.lower().endswith(_PICTURES + _FOREIGN + _VIDEOS) and not any(
        not name or _UNFIT.search(name) or _DEVICE.fullmatch(name) or len(os.fsencode(name)) > _LONGEST
        for name in names
    )


def _ending(media: Media) -> str:
    """How the name of embedded media ends where their content gives it."""
    guessed = ending(media.bytes or b"", "png") if media.kind == "image" else "mp4"
    return _ENDINGS.get(media.mime or "", f".{guessed}")
