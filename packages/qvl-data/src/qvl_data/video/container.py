"""Opening a video file: its container told from the first bytes, nothing but the file itself within reach."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from qvl_core.errors import BadInput, first_line

from ..errors import BadSample
from ..limits import Limits

CONTAINERS = "MP4, MOV, WebM, Matroska, AVI, MPEG-TS, MPEG, FLV, WMV, Ogg"
MEND = "write it again (ffmpeg -i FILE OUT.mp4)"
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot", b"sidx", b"moof")
_STARTS = (
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"\0\0\1\xba", "mpeg"),
    (b"FLV\1", "flv"),
    (b"0&\xb2u\x8ef\xcf\x11", "asf"),
    (b"OggS", "ogg"),
)
_PICTURES = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"))


@contextmanager
def opened(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. Whatever the decoder raises becomes a BadSample."""
    try:
        import av
    except ImportError:
        raise BadInput('reading video files needs PyAV; pip install "qvl-data[video]".') from None

    format = container_of(file, name)
    container = None
    try:
        # With the format fixed and no protocol allowed, nothing but this file is ever opened.
        options = {"protocol_whitelist": ""}
        container = av.open(file, format=format, container_options=options, metadata_errors="replace")
        cover = av.stream.Disposition.attached_pic
        stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
        if stream is None and container.streams.audio:
            raise BadSample("video_stream", "holds sound but no video; replace the file", name)
        if stream is None:
            raise BadSample("video_truncated", "holds nothing that can be shown; replace the file", name)
        if stream.codec_context is None:
            problem = "is cut off, or compressed in a way that cannot be decoded; replace it or convert it to H.264"
            raise BadSample("video_truncated", problem, name)
        stream.codec_context.thread_count = 1  # workers share the cores among themselves
        yield container, stream
    except BadSample:
        raise
    except MemoryError:
        raise BadSample("video_too_large", "asks for more memory than there is; replace the file", name) from None
    except Exception as error:  # on damage PyAV raises errors of many kinds, an IndexError among them
        problem = (
            f"truncated or damaged video ({getattr(error, 'strerror', None) or first_line(error)}); replace the file"
        )
        raise BadSample("video_truncated", problem, name) from None
    finally:
        if container is not None:
            container.close()


def container_of(file: BinaryIO, name: str) -> str:
    """FFmpeg's name of the container, from the first bytes. Raises BadSample."""
    head = at(file, 0, 1024)
    file.seek(0)
    if head[4:8] in _BOXES:
        return "mov"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"G") and head[188:189] == b"G":
        return "mpegts"
    if known := next((format for start, format in _STARTS if head.startswith(start)), None):
        return known
    kind = next((kind for start, kind in _PICTURES if head.startswith(start)), None)
    if kind is not None or head[8:12] == b"WEBP":
        raise BadSample("video_format", f"is a {kind or 'WebP'} picture, not a video; give it as an image", name)
    raise BadSample("video_format", f"is no video in a known container ({CONTAINERS}); convert it", name)


def length_of(file: BinaryIO, name: str, limits: Limits) -> int:
    """Bytes of the file. Raises BadSample if there are none, or too many."""
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    if length == 0:
        raise BadSample("video_format", "the file is empty; replace it", name)
    if length > limits.video_bytes:
        most = f"{limits.video_bytes / 2**30:g} GiB"
        problem = f"{length / 2**30:.1f} GiB is over the limit of {most}; cut or compress it"
        raise BadSample("video_too_large", problem, name)
    return length


def check_whole(file: BinaryIO, kind: str, length: int, name: str) -> None:
    """Matroska and AVI state their own length at the start. Raises BadSample if there is less."""
    head = at(file, 0, 4096)
    stated = 0
    if kind == "avi":
        stated = 8 + int.from_bytes(head[4:8], "little")
    elif kind == "matroska" and (segment := head.find(b"\x18\x53\x80\x67")) >= 0:
        size, width = _ebml_size(head[segment + 4 : segment + 12])
        stated = segment + 4 + width + size
    if stated > length:
        raise BadSample("video_truncated", f"truncated video ({length} of {stated} bytes); replace the file", name)


def _ebml_size(data: bytes) -> tuple[int, int]:
    """A size as Matroska writes it, and in how many bytes; 0 where it is left open (live recordings)."""
    if not data or data[0] == 0:
        return 0, 0
    width = 9 - data[0].bit_length()
    value = int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)
    return (0 if value == (1 << 7 * width) - 1 else value), width


def at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Bytes of the file from an offset."""
    file.seek(offset)
    return file.read(count)
