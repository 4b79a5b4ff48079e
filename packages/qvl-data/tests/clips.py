"""Small videos to test with, made by PyAV."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="needs the extra `video`")

KINDS = [
    ("mp4", "libx264"),
    ("mp4", "libsvtav1"),
    ("mov", "mpeg4"),
    ("webm", "libvpx-vp9"),
    ("matroska", "libx264"),
    ("avi", "mpeg4"),
    ("mpegts", "libx264"),
    ("flv", "libx264"),
    ("asf", "msmpeg4"),
]


def frames(count: int, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """White at the top left; green tells the number of the frame, from 0 in the first to 255 in the last."""
    for number in range(count):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 1] = round(number * 255 / max(1, count - 1))
        pixels[: height // 2, : width // 2] = 255
        yield pixels


def number_of(pixels: NDArray[np.uint8], count: int) -> float:
    """Which of `count` frames this is, as its colour says."""
    return float(pixels[-8:, -8:, 1].mean()) * (count - 1) / 255


def write_clip(
    path: Path,
    kind: tuple[str, str] = ("mp4", "libx264"),
    count: int = 30,
    size: tuple[int, int] = (64, 48),
    rate: Fraction | int = 10,
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    pattern: Any = frames,
) -> bytes:
    """The video as a file; `times` gives the milliseconds of its frames instead of a rate."""
    format, codec = kind
    fast = {"preset": "ultrafast"} if codec == "libx264" else {}
    with av.open(str(path), "w", format=format, options=muxing or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=fast | (options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(pattern(count, *size)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path.read_bytes()


def write_sound(path: Path) -> bytes:
    """An MP4 without pictures."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    return path.read_bytes()


def all_frames(content: bytes) -> NDArray[np.uint8]:
    """Every frame of a file, as PyAV gives them one after the other."""
    import io

    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
