"""What a file that is no known picture may be, from its first bytes."""

from typing import BinaryIO

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of the formats that are read."""

_ENDINGS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
_ENDINGS |= dict.fromkeys((b"II*\0", b"MM\0*"), "tiff")
_FOREIGN = {
    b"avif": "an AVIF picture",
    b"avis": "an AVIF animation",
    b"heic": "a HEIC picture",
    b"heix": "a HEIC picture",
    b"hevc": "a HEIC animation",
    b"mif1": "a HEIF picture",
    b"msf1": "a HEIF animation",
}
_STARTS = {
    b"\0\0\0\x0cjxl ": "a JPEG XL picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cjp  ": "a JPEG 2000 picture",
    b"%pdf": "a PDF document",
    b"8bps": "a Photoshop file",
    b"pk\3\4": "a ZIP archive",
}


def ending(content: bytes, default: str) -> str:
    """What the name of a picture should end in."""
    return next((name for start, name in _ENDINGS.items() if content.startswith(start)), default)


def sniff(file: BinaryIO) -> str:
    """What it is, and what to do about it, as the rest of a sentence about the file."""
    file.seek(0)
    head = file.read(256)
    if not head:
        return "the file is empty; replace it"
    if head[4:8] == b"ftyp":
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(int.from_bytes(head[:4], "big"), 64), 4))]
        kind = next((_FOREIGN[brand] for brand in brands if brand in _FOREIGN), "a video")
        return f"is {kind}, which is not read as a picture; convert it to JPEG, PNG or WebP"
    lower = head.lower()
    for start, what in _STARTS.items():
        if lower.startswith(start):
            return f"is {what}, which is not read; convert it to JPEG, PNG or WebP"
    lower = lower.lstrip()
    for start, what in ((b"<svg", "an SVG drawing"), (b"<!doctype html", "a web page"), (b"<html", "a web page")):
        if lower.startswith(start) or (start == b"<svg" and b"<svg" in lower):
            return f"is {what}, not a picture; replace it"
    return f"is no picture in a known format ({', '.join(FORMATS)}); convert it"
