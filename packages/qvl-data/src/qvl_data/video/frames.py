"""Single frames of a video file, exactly."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import BadSample
from ..limits import DEFAULTS, Limits
from .container import MEND, opened
from .header import Header

_INTRA = 1  # FFmpeg's AV_PICTURE_TYPE_I


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
    pixels = np.empty((len(numbers), header.height, header.width, 3), np.uint8)
    filled, number = 0, -1
    with opened(file, name) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number == header.frames:
                raise BadSample("video_count", f"holds more than the {header.frames} frames it states; {MEND}", name)
            if number > numbers[-1]:
                break
            if number == numbers[filled]:
                after = bisect_right(numbers, number)
                pixels[filled:after] = _upright(frame, header, name)
                filled = min(after, len(numbers) - 1)
    if number < numbers[-1]:
        problem = f"holds {number + 1} frames, not {header.frames} as it states; {MEND}"
        raise BadSample("video_count", problem, name)
    return pixels


def _by_groups(file: BinaryIO, name: str, header: Header, numbers: Sequence[int]) -> NDArray[np.uint8] | None:
    """Frames by their time stamps, decoding only the groups of pictures (from key frame to key frame) that hold them.

    None where counting is the only way, or as good: time stamps that are missing or come twice, every group needed.
    """
    with opened(file, name) as (container, stream):
        plan = _plan(container.demux(stream), header, numbers)
    if plan is None:
        return None
    times, needed = plan
    waiting = set(times)
    pixels = np.empty((len(times), header.height, header.width, 3), np.uint8)
    with opened(file, name) as (container, stream):
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
                if frame.pts in waiting:
                    if not entered and frame.pts >= entry:
                        return None  # a key frame in name only: the picture is refreshed bit by bit
                    same = slice(bisect_left(times, frame.pts), bisect_right(times, frame.pts))
                    pixels[same] = _upright(frame, header, name)
                    waiting.remove(frame.pts)
            if not waiting:
                return pixels
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


def _upright(frame: Any, header: Header, name: str) -> NDArray[np.uint8]:
    if frame.is_corrupt:
        raise BadSample("video_truncated", "truncated or damaged video; replace the file", name)
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    if frame.rotation % 90 == 0:
        pixels = np.rot90(pixels, frame.rotation // 90)
    if pixels.shape != (header.height, header.width, 3):
        found = f"a frame of {pixels.shape[1]} x {pixels.shape[0]} pixels"
        problem = f"holds {found}, not {header.width} x {header.height} as its header states; {MEND}"
        raise BadSample("video_frames", problem, name)
    return pixels
