"""Opening pictures: upright, in RGB, fully decoded or refused with a reason; never from the network.

Before a pixel is decoded, the header decides: the format must be known and the size below the cap. Paths stay below the
media root; absolute ones are opened only below a folder that was allowed, by --allow-root or by data.allow_root in the
recipe.
"""

import base64
import binascii
import io
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import BadSample
from .sample import Media

if TYPE_CHECKING:
    from .augment import Augmentation

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_DATA_URL = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*;base64,", re.ASCII)
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Opener:
    """Where pictures may be read from, how large they may be, and what is changed in them."""

    root: Path | None = None
    allow_root: tuple[Path, ...] = ()
    max_pixels: int = MAX_PIXELS
    augmentation: "Augmentation | None" = None

    def open(self, media: Media) -> Image.Image:
        """The picture in RGB, upright, on white where it was transparent. Raises BadSample."""
        picture = open_image(media, self.root, self.allow_root, self.max_pixels)
        if (stated := _stated(media)) and stated != picture.size:
            found = f"is {picture.width} x {picture.height} pixels upright, not {stated[0]} x {stated[1]} as stated"
            raise BadSample("media_stated_size", f"{found}; correct its width and height", media_name(media))
        return self.augmentation.picture(picture) if self.augmentation else picture

    def size(self, media: Media) -> tuple[int, int]:
        """Width and height of what `open` gives: from the stated size (checked on opening), else from its header.

        Raises BadSample.
        """
        size = _stated(media) or image_size(media, self.root, self.allow_root, self.max_pixels)
        return self.augmentation.size(size) if self.augmentation else size


def open_image(
    media: Media, root: Path | None = None, allow_root: tuple[Path, ...] = (), max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The picture in RGB, upright, on white where it was transparent; the first frame of an animation.

    Raises BadSample with the file's name: refused path, unknown format, too many pixels, truncated or broken data.
    """
    with _header(media, root, allow_root, max_pixels) as (picture, file, name):
        turn = _orientation(picture, file)
        try:
            picture.load()
        except Exception as error:  # decoders raise whatever the damage leads them to
            problem = f"truncated or damaged picture ({_first_line(error)}); replace the file"
            raise BadSample("image_truncated", problem, name) from None
        rgb = _rgb(picture, name)
    return rgb.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else rgb


def image_size(
    media: Media, root: Path | None = None, allow_root: tuple[Path, ...] = (), max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Width and height of the upright picture, reading only its header. Raises BadSample."""
    with _header(media, root, allow_root, max_pixels) as (picture, file, _):
        width, height = picture.size
        return (height, width) if _orientation(picture, file) >= 5 else (width, height)


def read_bytes(media: Media, root: Path | None = None, allow_root: tuple[Path, ...] = ()) -> bytes:
    """The encoded file of a picture or video, wherever it is kept. Raises BadSample."""
    file, _ = _file(media, root, allow_root)
    with file:
        return file.read()


def media_name(media: Media) -> str:
    """What to call it in a message."""
    if media.path is not None:
        return media.path
    if media.url is not None:
        return media.url if len(media.url) <= 80 else media.url[:60] + "..."
    return media.origin or f"embedded {media.kind}"


def _stated(media: Media) -> tuple[int, int] | None:
    if media.kind != "image" or media.width is None or media.height is None:
        return None
    return media.width, media.height


def is_absolute(path: str) -> bool:
    """Whether a path names its place by itself, on any system."""
    return PurePosixPath(path).is_absolute() or bool(PureWindowsPath(path).drive)


def locate(path: str, root: Path | None, allow_root: tuple[Path, ...] = ()) -> Path:
    """The real file behind a sample's path, which must be a regular file below one of the roots. Raises BadSample."""
    if is_absolute(path):
        roots, candidate = allow_root, Path(path)
        hint = "allow its folder with --allow-root (data.allow_root)"
    elif root is None:
        raise BadSample("media_root", "relative path, but no media root is known; give media_root", path)
    else:
        roots, candidate = (root, *allow_root), root / path
        hint = "move the file below the media root, or allow its folder with --allow-root (data.allow_root)"
    try:
        real = candidate.resolve()
        if not any(real.is_relative_to(folder.resolve()) for folder in roots):
            raise BadSample("media_path", f"lies outside the media root; {hint}", path)
        if not stat.S_ISREG(real.stat().st_mode):
            raise BadSample("media_path", "is not a regular file", path)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or str(error)
        raise BadSample("media_missing", f"cannot be opened ({reason}); looked in {candidate.parent}", path) from None
    return real


def _file(media: Media, root: Path | None, allow_root: tuple[Path, ...]) -> tuple[BinaryIO, str]:
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
        raise BadSample(
            "media_remote", "is an address, and data is never fetched while it is read; download it first", name
        )
    try:
        return locate(path, root, allow_root).open("rb"), name
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
def _header(
    media: Media, root: Path | None, allow_root: tuple[Path, ...], max_pixels: int
) -> Iterator[tuple[Image.Image, BinaryIO, str]]:
    """The picture with its header read and its size checked, pixels not yet decoded."""
    if media.kind != "image":
        raise BadSample("media_kind", "is a video, not a picture", media_name(media))
    file, name = _file(media, root, allow_root)
    with file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
                picture = Image.open(file, formats=FORMATS)
            width, height = picture.size
        except Image.DecompressionBombError:
            problem = f"is far over the limit of {max_pixels / 1e6:g} megapixels; resize it"
            raise BadSample("image_too_large", problem, name) from None
        except UnidentifiedImageError:
            raise BadSample("image_format", _sniff(file), name) from None
        except Exception as error:  # a damaged header
            problem = f"truncated or damaged picture ({_first_line(error)}); replace the file"
            raise BadSample("image_truncated", problem, name) from None
        if width * height > max_pixels:
            problem = f"{width} x {height} pixels is over the limit of {max_pixels / 1e6:g} megapixels; resize it"
            raise BadSample("image_too_large", problem, name)
        yield picture, file, name


def _sniff(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(256).lstrip().lower()
    if not head:
        return "the file is empty; replace it"
    for start, what in ((b"<svg", "an SVG drawing"), (b"<!doctype html", "a web page"), (b"<html", "a web page")):
        if head.startswith(start) or (start == b"<svg" and b"<svg" in head):
            return f"is {what}, not a picture; replace it"
    return f"is no picture in a known format ({', '.join(FORMATS)}); convert it"


def _orientation(picture: Image.Image, file: BinaryIO) -> int:
    """EXIF orientation, 1..8, without decoding pixels."""
    if picture.format == "TIFF":
        return 1  # Pillow turns TIFF pictures itself
    if picture.format == "PNG" and "exif" not in picture.info:
        exif = Image.Exif()
        if chunk := _png_chunk(file, b"eXIf"):
            exif.load(chunk)
    else:
        exif = picture.getexif()
    turn = exif.get(_ORIENTATION, 1)
    return turn if turn in _UPRIGHT else 1


def _png_chunk(file: BinaryIO, name: bytes) -> bytes | None:
    """A chunk that may stand after the pixels, found by walking over chunk headers."""
    back = file.tell()
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[:4], "big")
            if head[4:] == name:
                return file.read(size)
            file.seek(size + 4, io.SEEK_CUR)
        return None
    finally:
        file.seek(back)


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        problem = f"holds 32-bit values (mode {picture.mode}) whose range is unknown; convert it to 8 or 16 bits"
        raise BadSample("image_format", problem, name)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
