"""Opening pictures and videos: upright, in RGB, whole or refused with a reason; never from the network.

Before a pixel is decoded, the header decides: the format must be known and the size below the caps (`limits.Limits`).
Paths stay below the media root; absolute ones are opened only below a folder that was allowed, by --allow-root or by
data.allow_root in the recipe.
"""

import base64
import binascii
import io
import ntpath
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from qvl_core.errors import first_line

from .errors import BadSample
from .jpeg import quick_size
from .jpeg_pixels import quick_picture
from .limits import DEFAULTS, Limits
from .pixels import orientation, rgb, upright
from .sample import Media, Sample
from .sniff import FORMATS, sniff

if TYPE_CHECKING:
    from .augment import Augmentation
    from .video import Header

MAX_PIXELS = DEFAULTS.pixels
WHITE = (255, 255, 255)

_DATA_URL = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*;base64,", re.ASCII)


@dataclass(frozen=True)
class Opener:
    """Where media may be read from, how large they may be, and what is changed in them.

    background  RGB colour that transparent pictures are laid on
    """

    root: Path | None = None
    allow_root: tuple[Path, ...] = ()
    limits: Limits = DEFAULTS
    augmentation: "Augmentation | None" = None
    background: tuple[int, int, int] = WHITE

    @cached_property
    def known(self) -> dict[str, tuple[tuple[int, ...], bytes]]:
        """Of files that were read from here, by path: a stamp, and a key that holds as long as it does (`hashing`)."""
        return {}

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "known"}

    def open(self, media: Media) -> Image.Image:
        """The picture in RGB, upright, on the background where it was transparent. Raises BadSample."""
        picture = open_image(media, self.root, self.allow_root, self.limits, self.background)
        _check_stated(media, picture.size)
        return self.augmentation.picture(picture) if self.augmentation else picture

    def size(self, media: Media) -> tuple[int, int]:
        """Width and height of what `open` gives: from the stated size (checked on opening), else from its header.

        Raises BadSample.
        """
        stated = _stated(media) if media.kind == "image" else None
        return self.changed_size(stated or image_size(media, self.root, self.allow_root, self.limits))

    def changed_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of a picture or frame of this size after augmentation."""
        return self.augmentation.size(size) if self.augmentation else size

    def video(self, media: Media) -> "Header":
        """What a video file says of itself; nothing is decoded. Raises BadSample."""
        from .video import probe

        file, name = _video_file(media, self.root, self.allow_root)
        with file:
            header = probe(file, name, self.limits)
        _check_stated(media, (header.width, header.height))
        return header

    def frames(self, media: Media, header: "Header", numbers: Sequence[int]) -> NDArray[np.uint8]:
        """The frames of a video file with these numbers, upright, in RGB: (T, H, W, 3). Raises BadSample."""
        from .video import decode

        file, name = _video_file(media, self.root, self.allow_root)
        with file:
            frames = decode(file, name, header, numbers, self.limits)
        if self.augmentation is None:
            return frames
        return np.stack([np.asarray(self.augmentation.picture(Image.fromarray(frame))) for frame in frames])


def open_image(
    media: Media,
    root: Path | None = None,
    allow_root: tuple[Path, ...] = (),
    limits: Limits = DEFAULTS,
    background: tuple[int, int, int] = WHITE,
) -> Image.Image:
    """The picture in RGB, upright, on `background` where it was transparent; the first frame of an animation.

    Colour profiles (ICC) are not applied. Raises BadSample with the file's name: refused path, unknown format, over a
    limit, truncated or broken data.
    """
    with _opened(media, root, allow_root, limits) as (file, name):
        if (plain := quick_picture(file, limits)) is not None:
            return plain
        picture = _header(file, name, limits)
        turn = orientation(picture, file)
        try:
            picture.load()
        except Exception as error:  # decoders raise whatever the damage leads them to
            problem = f"truncated or damaged picture ({first_line(error)}); replace the file"
            raise BadSample("image_truncated", problem, name) from None
        return upright(rgb(picture, name, background), turn)


def image_size(
    media: Media, root: Path | None = None, allow_root: tuple[Path, ...] = (), limits: Limits = DEFAULTS
) -> tuple[int, int]:
    """Width and height of the upright picture, reading only its header. Raises BadSample."""
    width, height, turn = stored_size(media, root, allow_root, limits)
    return (height, width) if turn >= 5 else (width, height)


def stored_size(
    media: Media, root: Path | None = None, allow_root: tuple[Path, ...] = (), limits: Limits = DEFAULTS
) -> tuple[int, int, int]:
    """Width and height as stored, and the EXIF orientation (1..8), from the header. Raises BadSample."""
    with _opened(media, root, allow_root, limits) as (file, name):
        quick = quick_size(file)
        if quick is not None:
            width, height, turn = quick
            _check_size(width, height, limits, name)
        else:
            picture = _header(file, name, limits)
            (width, height), turn = picture.size, orientation(picture, file)
    return width, height, turn


def image_frames(
    media: Media, root: Path | None = None, allow_root: tuple[Path, ...] = (), limits: Limits = DEFAULTS
) -> int:
    """How many frames or pages a picture has; only its first is ever shown. Raises BadSample."""
    with _opened(media, root, allow_root, limits) as (file, name):
        return _count(_header(file, name, limits))


def read_bytes(media: Media, root: Path | None = None, allow_root: tuple[Path, ...] = ()) -> bytes:
    """The encoded file of a picture or video, wherever it is kept. Raises BadSample."""
    file, _ = _file(media, root, allow_root)
    with file:
        return file.read()


def in_memory(sample: Sample, pictures: Iterable[int]) -> Sample:
    """The same sample with the files of some of its pictures read, once, however often they are opened or hashed then.

    pictures  indices into its media

    Raises BadSample.
    """
    media = list(sample.media)
    for index in set(pictures):
        one, opener = media[index], sample.opener
        if one.bytes is None:
            with _opened(one, opener.root, opener.allow_root, opener.limits) as (file, name):
                read = {"path": None, "url": None, "bytes": file.read(), "origin": name}
            media[index] = one.model_copy(update=read)
    return sample.model_copy(update={"media": tuple(media)})


def media_name(media: Media) -> str:
    """What to call it in a message."""
    if media.path is not None:
        return media.path
    if media.url is not None:
        return media.url if len(media.url) <= 80 else media.url[:60] + "..."
    if media.video is not None and media.video.frames is not None:
        return "video given as frames"
    return media.origin or f"embedded {media.kind}"


def _stated(media: Media) -> tuple[int, int] | None:
    return None if media.width is None or media.height is None else (media.width, media.height)


def _check_stated(media: Media, size: tuple[int, int]) -> None:
    if (stated := _stated(media)) and stated != size:
        found = f"is {size[0]} x {size[1]} pixels upright, not {stated[0]} x {stated[1]} as stated"
        raise BadSample("media_stated_size", f"{found}; correct its width and height", media_name(media))


def is_absolute(path: str) -> bool:
    """Whether a path names its place by itself, on any system."""
    return path.startswith("/") or ntpath.splitdrive(path)[0] != ""


def locate(path: str, root: Path | None, allow_root: tuple[Path, ...] = ()) -> Path:
    """The real file behind a sample's path, which must be a regular file below one of the roots. Raises BadSample."""
    return Path(_locate(path, root, allow_root))


def _locate(path: str, root: Path | None, allow_root: tuple[Path, ...]) -> str:
    """The same as text; pathlib would take a third of the time that the size of a small picture needs."""
    if is_absolute(path):
        roots, candidate = allow_root, path
        hint = "allow its folder with --allow-root (data.allow_root)"
    elif root is None:
        raise BadSample("media_root", "relative path, but no media root is known; give media_root", path)
    else:
        roots, candidate = (root, *allow_root), os.path.join(root, path)
        hint = "move the file below the media root, or allow its folder with --allow-root (data.allow_root)"
    try:
        real = os.path.realpath(candidate)
        if not any(_below(real, _real(os.path.abspath(folder))) for folder in roots):
            raise BadSample("media_path", f"lies outside the media root; {hint}", path)
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise BadSample("media_path", "is not a regular file", path)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = getattr(error, "strerror", None) or str(error)
        looked = os.path.dirname(candidate)
        raise BadSample("media_missing", f"cannot be opened ({reason}); looked in {looked}", path) from None
    return real


@lru_cache(maxsize=64)
def _real(folder: str) -> str:
    """A root without links. Remembered: were it to change, files would be refused, never more of them allowed."""
    return os.path.realpath(folder)


def _below(real: str, root: str) -> bool:
    """Whether a path without links lies below a folder without links."""
    real, root = os.path.normcase(real), os.path.normcase(root)
    return real.startswith(root if root.endswith(os.sep) else root + os.sep)


def _video_file(media: Media, root: Path | None, allow_root: tuple[Path, ...]) -> tuple[BinaryIO, str]:
    if media.kind != "video":
        raise BadSample("media_kind", "is a picture, not a video", media_name(media))
    return _file(media, root, allow_root)


def _file(media: Media, root: Path | None, allow_root: tuple[Path, ...]) -> tuple[BinaryIO, str]:
    """The encoded file, opened, and what to call it. Raises BadSample."""
    name = media_name(media)
    if media.bytes is not None:
        return io.BytesIO(media.bytes), name
    if media.path is not None:
        path = media.path
    elif media.url is None:
        raise BadSample("media_kind", "a video given as frames has no file of its own", name)
    elif media.url.startswith("data:"):
        return io.BytesIO(data_url(media.url)[1]), name
    elif urlsplit(media.url).scheme == "file":
        path = re.sub(r"^/(?=[A-Za-z]:)", "", unquote(urlsplit(media.url).path))  # file:///C:/... is a drive
    else:
        problem = "is an address, and data is never fetched while it is read; fetch it first (qvl-data fetch)"
        raise BadSample("media_remote", problem, name)
    try:
        return open(_locate(path, root, allow_root), "rb"), name
    except OSError as error:
        raise BadSample("media_missing", f"cannot be read: {error.strerror}", name) from None


def data_url(url: str) -> tuple[str | None, bytes]:
    """Media type and content of a base64 data URL. Raises BadSample."""
    match = _DATA_URL.match(url)
    if match is None:
        raise BadSample("data_url", "not a base64 data URL (data:image/png;base64,...)", url[:40])
    try:
        return match["mime"], base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise BadSample("data_url", "the base64 of this data URL is damaged", url[:40]) from None


@contextmanager
def _opened(
    media: Media, root: Path | None, allow_root: tuple[Path, ...], limits: Limits
) -> Iterator[tuple[BinaryIO, str]]:
    """The file of a picture, its length checked."""
    if media.kind != "image":
        raise BadSample("media_kind", "is a video, not a picture", media_name(media))
    file, name = _file(media, root, allow_root)
    with file:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        if length > limits.image_bytes:
            problem = f"{length / 2**20:.0f} MiB is over the limit of {limits.image_bytes / 2**20:g} MiB; compress it"
            raise BadSample("image_too_large", problem, name)
        yield file, name


def _header(file: BinaryIO, name: str, limits: Limits) -> Image.Image:
    """The picture with its header read and its size checked, pixels not yet decoded. Raises BadSample."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit follows
            picture = Image.open(file, formats=FORMATS)
        width, height = picture.size
    except Image.DecompressionBombError:
        problem = f"is far over the limit of {limits.pixels / 1e6:g} megapixels; resize it"
        raise BadSample("image_too_large", problem, name) from None
    except UnidentifiedImageError:
        raise BadSample("image_format", sniff(file), name) from None
    except Exception as error:  # a damaged header
        problem = f"truncated or damaged picture ({first_line(error)}); replace the file"
        raise BadSample("image_truncated", problem, name) from None
    _check_size(width, height, limits, name)
    if limits.animation == "refuse" and (count := _count(picture)) > 1:
        problem = f"is an animation or a document of {count} pictures; give the one that is meant"
        raise BadSample("image_animated", problem, name)
    return picture


def _check_size(width: int, height: int, limits: Limits, name: str) -> None:
    if width * height > limits.pixels:
        problem = f"{width} x {height} pixels is over the limit of {limits.pixels / 1e6:g} megapixels; resize it"
        raise BadSample("image_too_large", problem, name)
    if max(width, height) > limits.side:
        problem = f"{width} x {height} pixels is over the limit of {limits.side} pixels a side; crop it"
        raise BadSample("image_too_large", problem, name)


def _count(picture: Image.Image) -> int:
    """Frames or pages; the previews that cameras keep behind a JPEG are none."""
    try:
        return 1 if picture.format in ("JPEG", "MPO") else int(getattr(picture, "n_frames", 1))
    except Exception:  # damage behind the first frame, which alone is shown
        return 1
