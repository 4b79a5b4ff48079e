"""Fingerprints that say when two samples, or two pictures, are the same.

Exact ones are SHA-256 of the content. The perceptual one survives rescaling, recompression and small changes of
brightness: 64 bits of which a copy changes few and another picture about half.
"""

import hashlib
import json
import os
import time
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import BadSample
from .media import Opener, read_bytes
from .order import mix
from .sample import Media, Sample

BITS = 64
SIGNATURE = 64
"""Entries of the signature of a text."""
REMEMBERED = 1 << 18
"""Files of a data set whose keys a process remembers: some 100 MB."""
SETTLED = 2_000_000_000
"""Nanoseconds after which a file that changes has another time, on every file system."""
_SIDE, _KEPT = 32, 8  # pixels of the reduced picture; lowest frequencies that are kept, each way
_SHINGLE = 5  # characters
_ODD = np.uint64(0x9E3779B97F4A7C15)
_FLAT = 2.0  # grey levels of contrast below which there is no shape to speak of, only noise


def phash(picture: Image.Image) -> int:
    """64-bit perceptual hash of a picture: the signs of its lowest frequencies (Zauner 2010, "Implementation and
    Benchmarking of Perceptual Image Hash Functions", section 3.2.1).

    The picture is reduced to (32, 32) grey levels; of its cosine transform the 8 x 8 lowest frequencies are kept, the
    constant row and column left out, and each gives one bit: whether it is above their median. Colour, brightness and
    aspect do not count. A picture without any shape (one even colour) gives its brightness instead, as a number of
    ones from 0 to 64, so that a black page is no white page.
    """
    grey = np.asarray(picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=None), np.float64)
    waves = _cosines()
    low = waves @ grey @ waves.T  # (8, 8)
    if np.abs(low).max() < _FLAT:
        return (1 << round(float(grey.mean()) / 255 * BITS)) - 1
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> NDArray[np.float64]:
    """Frequencies 1..8 of the cosine transform of 32 values: (8, 32), orthonormal over 32 / 2."""
    frequency = np.arange(1, _KEPT + 1)[:, None]
    place = np.arange(_SIDE)[None, :] + 0.5
    return np.cos(np.pi / _SIDE * frequency * place) * 2 / _SIDE


def minhash(text: str) -> NDArray[np.uint32]:
    """Signature (64,) of a text. The share of entries in which two texts agree is about that of the shingles, the runs
    of 5 characters, which they have in common (Jaccard similarity; Broder 1997, "On the resemblance and containment of
    documents").

    Case and white space do not count. Standard error of the share: at most 0.0625.
    """
    plain = " ".join(text.casefold().split()).ljust(_SHINGLE, "\0")
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    shingles = np.zeros(len(codes) - _SHINGLE + 1, np.uint64)
    for place in range(_SHINGLE):
        shingles = (shingles ^ codes[place : len(codes) - _SHINGLE + 1 + place]) * _ODD
        shingles ^= shingles >> np.uint64(29)
    least = np.full(SIGNATURE, np.iinfo(np.uint32).max, np.uint32)
    factors = _factors()
    for start in range(0, len(shingles), 4096):
        hashed = (shingles[None, start : start + 4096] * factors[:, None] >> np.uint64(32)).astype(np.uint32)
        least = np.minimum(least, hashed.min(axis=1))
    return least


@cache
def _factors() -> NDArray[np.uint64]:
    """One odd number for each entry of a signature: (64,)."""
    return np.array([mix(entry) | 1 for entry in range(SIGNATURE)], np.uint64)


def said(sample: Sample) -> str:
    """All texts of a sample, for `minhash`."""
    edit = sample.edit
    texts = [f"{message.role}: {message.text}" for message in sample.messages]
    texts += [*edit.instruction.values(), *(edit.inverse or {}).values()] if edit is not None else []
    return "\n".join([*texts, *(region.label or "" for region in sample.regions)])


def text_key(sample: Sample) -> bytes:
    """SHA-256 (32 bytes) of all that a sample says, its pictures and videos apart: turns, instructions, regions."""
    said = sample.model_dump(mode="json", exclude={"id", "meta", "extra", "media"})
    canonical = json.dumps(said, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()


def media_key(media: Media, opener: Opener) -> bytes:
    """SHA-256 (32 bytes) of the file of a picture or video; of its address where it is remote. Raises BadSample.

    A video given as frames has no file: its key says which frames, and they are media of their own. A process reads a
    file once for it, as long as size and time of the file stay.
    """
    if media.path is not None:
        return _path_key(media, media.path, opener)
    if media.video is not None and media.video.frames is not None:
        content = media.video.model_dump_json().encode()
    elif media.url is not None and media.url.lower().startswith(("http://", "https://")):
        content = media.url.encode("utf-8", "surrogatepass")
    else:
        return _content_key(media, opener)
    return hashlib.sha256(content).digest()


def _path_key(media: Media, path: str, opener: Opener) -> bytes:
    """Of a file, which is read only if it is not known, or has changed."""
    try:
        status = os.stat(os.path.join(opener.root or "", path))
    except (OSError, ValueError):  # to read it says what is wrong
        return _content_key(media, opener)
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
    before, key = opener.known.get(path, (None, b""))
    if before != stamp:
        key = _content_key(media, opener)
        if time.time_ns() - status.st_mtime_ns > SETTLED:
            opener.known[path] = stamp, key
            if len(opener.known) > REMEMBERED:
                del opener.known[next(iter(opener.known))]
    return key


def _content_key(media: Media, opener: Opener) -> bytes:
    return hashlib.sha256(read_bytes(media, opener.root, opener.allow_root)).digest()


def picture_hash(media: Media, opener: Opener) -> int | None:
    """`phash` of a picture; None where there is none to be seen: a video, a remote address. Raises BadSample."""
    if media.kind != "image":
        return None
    try:
        return phash(opener.open(media))
    except BadSample as error:
        if error.reason == "media_remote":
            return None
        raise
