"""Video files: what their headers say, and single frames of them, exactly, through PyAV (the extra `video`).

    header = probe(file, "clip.mp4")                  # frames, fps, size, turn; nothing is decoded
    pixels = decode(file, "clip.mp4", header, [0, 15, 30])   # (3, H, W, 3), upright

A frame is named by its number in the order of showing, and its time is number / fps, as in transformers: time stamps
in the file, which may be broken or uneven, decide nothing. Known containers only, recognised by their first bytes and
never by name; playlists, which could name other files or addresses, are none of them. Colours are converted as FFmpeg
does it by default; pixels that are not square are not stretched.
"""

import io
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput

from .errors import BadSample
from .limits import DEFAULTS, Limits

CONTAINERS = "MP4, MOV, WebM, Matroska, AVI, MPEG-TS, MPEG, FLV, WMV, Ogg"
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot", b"sidx", b"moof")
_PICTURES = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"))
_INTRA = 1  # FFmpeg's AV_PICTURE_TYPE_I
_FASTEST = 1000  # frames per second; what claims more has no usable rate


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
    length = _length(file, name, limits)
    kind = _container(file, name)
    _check_whole(file, kind, length, name)
    turned = kind == "mov" and _quarter_turn(file, length)
    with _opened(file, name) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        check_size(width, height, limits, name, "frames of ")
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
    first = math.ceil((start or 0) * header.fps)
    last = header.frames - 1 if end is None else min(math.floor(end * header.fps), header.frames - 1)
    if first > last:
        problem = f"nothing lies between its seconds {start or 0:g} and {header.seconds if end is None else end:g}"
        raise BadSample("video_cut", f"{problem} (it lasts {header.seconds:.2f}); correct start and end", name)
    return range(first, last + 1)


def decode(
    file: BinaryIO, name: str, header: Header, numbers: Sequence[int], limits: Limits = DEFAULTS
) -> NDArray[np.uint8]:
    """The frames with these numbers (ascending, repeats allowed) in RGB, upright: (T, H, W, 3).

    Raises BadSample: `video_truncated` for damage, `video_count` if the file does not hold what its header says.
    """
    if not numbers:
        raise ValueError("name at least one frame")
    if len(numbers) * header.width * header.height > limits.clip_pixels:
        problem = f"{len(numbers)} frames of {header.width} x {header.height} are over the limit of"
        problem += f" {limits.clip_pixels / 1e6:g} megapixels at once; take fewer (media.fps, media.max_frames)"
        raise BadSample("video_too_large", problem, name)
    pixels = _by_groups(file, name, header, numbers)
    return _in_order(file, name, header, numbers) if pixels is None else pixels


def _in_order(file: BinaryIO, name: str, header: Header, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """Frames by counting from the first to the last that is wanted."""
    wanted, taken = iter(numbers), []
    next_one = next(wanted, None)
    number = -1
    with _opened(file, name) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number == header.frames:
                raise BadSample("video_count", f"holds more than the {header.frames} frames it states; {_MEND}", name)
            if number == next_one:
                pixels = _upright(frame, header, name)
            while number == next_one:
                taken.append(pixels)
                next_one = next(wanted, None)
            if number > numbers[-1]:
                break
    if next_one is not None:
        problem = f"holds {number + 1} frames, not {header.frames} as it states; {_MEND}"
        raise BadSample("video_count", problem, name)
    return np.stack(taken)


def _by_groups(file: BinaryIO, name: str, header: Header, numbers: Sequence[int]) -> NDArray[np.uint8] | None:
    """Frames by their time stamps, decoding only the groups of pictures (from key frame to key frame) that hold them.

    None where counting is the only way, or as good: time stamps that are missing or come twice, every group needed.
    """
    with _opened(file, name) as (container, stream):
        plan = _plan(container.demux(stream), header, numbers)
    if plan is None:
        return None
    times, needed = plan
    wanted = set(times)
    found: dict[int, NDArray[np.uint8]] = {}
    with _opened(file, name) as (container, stream):
        decoder, group, entry, entered = stream.codec_context, -1, 0, True
        for packet in container.demux(stream):
            frames = []
            if packet.is_keyframe:
                if group in needed and group + 1 not in needed:
                    frames += decoder.decode(None)  # what it still holds back
                group += 1
                if group in needed and group - 1 not in needed:
                    decoder.flush_buffers()
                    entry, entered = packet.pts, False
            if group in needed:
                frames += packet.decode()
            for frame in frames:
                entered = entered or (frame.pts == entry and frame.pict_type == _INTRA)
                if frame.pts in wanted:
                    if not entered and frame.pts >= entry:
                        return None  # a key frame in name only: the picture is refreshed bit by bit
                    found[frame.pts] = _upright(frame, header, name)
            if len(found) == len(wanted):
                return np.stack([found[time] for time in times])
    return None


def _plan(packets: Iterable[Any], header: Header, numbers: Sequence[int]) -> tuple[list[int], set[int]] | None:
    """Time stamps of the frames that are wanted, and which groups of pictures must be decoded for them."""
    shown: list[tuple[int, int]] = []  # time stamp, group
    starts: list[int] = []
    for packet in packets:
        if packet.size == 0:
            continue
        if packet.pts is None or not (starts or packet.is_keyframe):
            return None
        if packet.is_keyframe:
            starts.append(packet.pts)
        if not packet.is_discard:
            shown.append((packet.pts, len(starts) - 1))
    shown.sort()
    if len(shown) != header.frames or len({time for time, _ in shown}) != header.frames:
        return None
    wanted = [shown[number] for number in numbers]
    # A frame that is shown before its key frame may also need the group before.
    needed = {group for _, group in wanted} | {group - 1 for time, group in wanted if time < starts[group]}
    return None if len(needed) > max(needed) else ([time for time, _ in wanted], needed)


_MEND = "write it again (ffmpeg -i FILE OUT.mp4)"


def check_size(width: int, height: int, limits: Limits, name: str, what: str = "") -> None:
    """Refuse a frame whose header promises too much, or nothing. Raises BadSample."""
    if width <= 0 or height <= 0:
        raise BadSample("video_truncated", "its header states no size; replace the file", name)
    if width * height > limits.pixels or max(width, height) > limits.side:
        problem = f"{what}{width} x {height} pixels are over the limit of {limits.pixels / 1e6:g} megapixels"
        raise BadSample("video_too_large", f"{problem} and {limits.side} pixels a side; resize it", name)


def _length(file: BinaryIO, name: str, limits: Limits) -> int:
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    if length == 0:
        raise BadSample("video_format", "the file is empty; replace it", name)
    if length > limits.video_bytes:
        problem = (
            f"{length / 2**30:.1f} GiB is over the limit of {limits.video_bytes / 2**30:g} GiB; cut or compress it"
        )
        raise BadSample("video_too_large", problem, name)
    return length


@contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. Whatever the decoder raises becomes a BadSample."""
    try:
        import av
    except ImportError:
        raise BadInput('reading video files needs PyAV; pip install "qvl-data[video]".') from None

    format = _container(file, name)
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
    except (av.FFmpegError, OSError, ValueError, OverflowError, RuntimeError) as error:
        problem = f"truncated or damaged video ({_first_line(error)}); replace the file"
        raise BadSample("video_truncated", problem, name) from None
    finally:
        if container is not None:
            container.close()


def _container(file: BinaryIO, name: str) -> str:
    """FFmpeg's name of the container, from the first bytes. Raises BadSample."""
    file.seek(0)
    head = file.read(1024)
    file.seek(0)
    if head[4:8] in _BOXES:
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"G") and head[188:189] in (b"G", b""):
        return "mpegts"
    for start, format in (
        (b"\0\0\1\xba", "mpeg"),
        (b"FLV\1", "flv"),
        (b"0&\xb2u\x8ef\xcf\x11", "asf"),
        (b"OggS", "ogg"),
    ):
        if head.startswith(start):
            return format
    kind = next((kind for start, kind in _PICTURES if head.startswith(start)), None)
    if kind is not None or head[8:12] == b"WEBP":
        raise BadSample("video_format", f"is a {kind or 'WebP'} picture, not a video; give it as an image", name)
    raise BadSample("video_format", f"is no video in a known container ({CONTAINERS}); convert it", name)


def _check_whole(file: BinaryIO, kind: str, length: int, name: str) -> None:
    """Matroska and AVI state their own length at the start. Raises BadSample if there is less."""
    head = _at(file, 0, 4096)
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
    raise BadSample("video_fps", f"states no usable frame rate; {_MEND}", name)


def _quarter_turn(file: BinaryIO, length: int) -> bool:
    """Whether the first video track of an MP4 is shown turned by 90 or 270 degrees (ISO/IEC 14496-12, 8.3.2)."""
    for start, end in _boxes(file, 0, length, b"moov"):
        for track in _boxes(file, start, end, b"trak"):
            handlers = [
                _at(file, handler[0] + 8, 4)
                for media in _boxes(file, *track, b"mdia")
                for handler in _boxes(file, *media, b"hdlr")
            ]
            if handlers != [b"vide"]:
                continue
            for inside, _ in _boxes(file, *track, b"tkhd"):
                long = _at(file, inside, 1) == b"\1"
                matrix = _at(file, inside + (52 if long else 40), 20)
                if len(matrix) == 20:
                    a, b, _, c, d = struct.unpack(">5i", matrix)
                    return a == d == 0 and b != 0 and c != 0
            return False
    return False


def _boxes(file: BinaryIO, start: int, end: int, name: bytes) -> Iterator[tuple[int, int]]:
    """Where the content of each box of this name between two offsets lies."""
    for _ in range(10_000):  # a hostile file may hold millions of empty ones
        head = _at(file, start, 16)
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


def _at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _upright(frame: Any, header: Header, name: str) -> NDArray[np.uint8]:
    if frame.is_corrupt:
        raise BadSample("video_truncated", "truncated or damaged video; replace the file", name)
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    if frame.rotation % 90 == 0:
        pixels = np.rot90(pixels, frame.rotation // 90)
    if pixels.shape != (header.height, header.width, 3):
        found = f"a frame of {pixels.shape[1]} x {pixels.shape[0]} pixels"
        problem = f"holds {found}, not {header.width} x {header.height} as its header states; {_MEND}"
        raise BadSample("video_frames", problem, name)
    return pixels


def _first_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
