"""From a picture as it is stored to upright RGB with 8 bits."""

import io
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image

from .errors import BadSample

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
_EXIF_BYTES = 1 << 20


def upright(picture: Image.Image, turn: int) -> Image.Image:
    """The picture turned and mirrored as an EXIF orientation says."""
    return picture.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else picture


def orientation(picture: Image.Image, file: BinaryIO) -> int:
    """EXIF orientation, 1..8, without decoding pixels; 1 where the EXIF block is damaged."""
    if picture.format == "TIFF":
        return 1  # Pillow turns TIFF pictures itself
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if picture.format == "PNG" and "exif" not in picture.info:
                exif = Image.Exif()
                if chunk := _png_chunk(file, b"eXIf"):
                    exif.load(chunk)
            else:
                exif = picture.getexif()
            turn = exif.get(_ORIENTATION, 1)
    except Exception:  # whatever the damage leads Pillow to; such a block says nothing
        return 1
    return turn if turn in _UPRIGHT else 1


def _png_chunk(file: BinaryIO, name: bytes) -> bytes | None:
    """A chunk that may stand after the pixels, found by walking over chunk headers."""
    back = file.tell()
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[:4], "big")
            if head[4:] == name:
                return file.read(min(size, _EXIF_BYTES))
            file.seek(size + 4, io.SEEK_CUR)
        return None
    finally:
        file.seek(back)


def rgb(picture: Image.Image, name: str, background: tuple[int, int, int]) -> Image.Image:
    """A loaded picture in RGB, on `background` where it is transparent. Raises BadSample for colours it cannot tell."""
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.uint32)
        grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if (clear := picture.info.get("transparency")) is None:
            return grey.convert("RGB")
        mask = Image.fromarray((values != clear).astype(np.uint8) * 255)
        return Image.composite(grey.convert("RGB"), Image.new("RGB", picture.size, background), mask)
    if picture.mode in ("I", "F"):
        problem = f"holds 32-bit values (mode {picture.mode}) whose range is unknown; convert it to 8 or 16 bits"
        raise BadSample("image_format", problem, name)
    try:
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture).convert("RGB")
        return picture.convert("RGB")
    except Exception:
        problem = f"holds colours (mode {picture.mode}) that are not read; convert it to RGB"
        raise BadSample("image_format", problem, name) from None
