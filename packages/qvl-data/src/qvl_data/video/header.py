"""What a video file says of itself: number and rate of its frames, size, rotation."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

from ..errors import BadSample
from ..limits import DEFAULTS, Limits
from .container import MEND, at, check_whole, container_of, length_of, opened

_FASTEST = 1000  # frames per second; what claims more has no usable rate
_ROUNDING = 1e-6  # of a frame: 0.7 seconds at 10 per second is frame 7


@dataclass(frozen=True)
class Header:
    """What a video file says of itself."""

    frames: int
    fps: float
    width: int
    """Of the upright frame, as is `height`."""
    height: int
    codec: str

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def probe(file: BinaryIO, name: str, limits: Limits = DEFAULTS) -> Header:
    """The header of a video file: from the index of an MP4, else by counting packets. Nothing is decoded.

    Raises BadSample: `video_format`, `video_stream` (only sound), `video_truncated`, `video_fps`, `video_too_large`.
    """
    length = length_of(file, name, limits)
    kind = container_of(file, name)
    check_whole(file, kind, length, name)
    turned = kind == "mov" and _quarter_turn(file, length)
    with opened(file, name) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_size(width, height, limits, name)
        frames = _indexed(stream, length, name) if kind == "mov" and stream.frames else 0
        frames = frames or _counted(container, stream, limits, name)
        if frames == 0:
            raise BadSample("video_truncated", "holds not a single frame; replace the file", name)
        fps = _rate(stream, name)
        if frames > limits.video_frames or frames / fps > limits.video_seconds:
            problem = f"{frames} frames, {frames / fps:.0f} seconds, is over the limit of {limits.video_frames} frames"
            raise BadSample("video_too_large", f"{problem} and {limits.video_seconds:.0f} seconds; cut it", name)
        codec = stream.codec_context.name
    return Header(frames, fps, *((height, width) if turned else (width, height)), codec)


def cut(header: Header, start: float | None, end: float | None, name: str) -> range:
    """The frames between two times in seconds, both included. Raises BadSample (`video_cut`) if there are none."""
    first = math.ceil((start or 0) * header.fps - _ROUNDING)
    last = header.frames - 1 if end is None else min(math.floor(end * header.fps + _ROUNDING), header.frames - 1)
    if first > last:
        problem = f"nothing lies between its seconds {start or 0:g} and {header.seconds if end is None else end:g}"
        raise BadSample("video_cut", f"{problem} (it lasts {header.seconds:.2f}); correct start and end", name)
    return range(first, last + 1)


def _check_size(width: int, height: int, limits: Limits, name: str) -> None:
    if width <= 0 or height <= 0:
        raise BadSample("video_truncated", "its header states no size; replace the file", name)
    if width * height > limits.pixels or max(width, height) > limits.side:
        problem = f"frames of {width} x {height} pixels are over the limit of {limits.pixels / 1e6:g} megapixels"
        raise BadSample("video_too_large", f"{problem} and {limits.side} pixels a side; resize it", name)


def _indexed(stream: Any, length: int, name: str) -> int:
    """Frames in the index of an MP4 that are shown. Raises BadSample if one lies beyond the end of the file."""
    shown = 0
    for entry in stream.index_entries:
        if entry.pos + entry.size > length:
            problem = f"truncated video: its index goes on to byte {entry.pos + entry.size}, the file to {length}"
            raise BadSample("video_truncated", f"{problem}; replace the file", name)
        shown += not entry.is_discard
    return shown


def _counted(container: Any, stream: Any, limits: Limits, name: str) -> int:
    """Packets that show a frame, found by reading the file through without decoding. Raises BadSample."""
    shown = 0
    is_vp8 = stream.codec_context.name in ("vp8", "libvpx")
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        shown += not (is_vp8 and not bytes(packet)[0] & 0x10)  # VP8 keeps reference frames that are never shown
        if shown > limits.video_frames:
            problem = f"holds more than {limits.video_frames} frames; cut it"
            raise BadSample("video_too_large", problem, name)
    return shown


def _rate(stream: Any, name: str) -> float:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if isinstance(rate, Fraction) and 0 < rate <= _FASTEST:
            return float(rate)
    raise BadSample("video_fps", f"states no usable frame rate; {MEND}", name)


def _quarter_turn(file: BinaryIO, length: int) -> bool:
    """Whether the first video track of an MP4 is shown turned by 90 or 270 degrees (ISO/IEC 14496-12, 8.3.2)."""
    for start, end in _boxes(file, 0, length, b"moov"):
        for track in _boxes(file, start, end, b"trak"):
            handlers = [
                at(file, handler[0] + 8, 4)
                for media in _boxes(file, *track, b"mdia")
                for handler in _boxes(file, *media, b"hdlr")
            ]
            if handlers != [b"vide"]:
                continue
            for inside, _ in _boxes(file, *track, b"tkhd"):
                long = at(file, inside, 1) == b"\1"
                matrix = at(file, inside + (52 if long else 40), 20)
                if len(matrix) == 20:
                    a, b, _, c, d = struct.unpack(">5i", matrix)
                    return a == d == 0 and b != 0 and c != 0
            return False
    return False


def _boxes(file: BinaryIO, start: int, end: int, name: bytes) -> Iterator[tuple[int, int]]:
    """Where the content of each box of this name between two offsets lies."""
    for _ in range(10_000):  # a hostile file may hold millions of empty ones
        head = at(file, start, 16)
        if start + 8 > end or len(head) < 8:
            return
        size, inside = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, inside = int.from_bytes(head[8:16], "big"), 16
        stop = end if size == 0 else start + size
        if stop > end or stop < start + inside:
            return
        if head[4:8] == name:
            yield start + inside, stop
        start = stop
