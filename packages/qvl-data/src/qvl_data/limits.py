"""What is too large to be read: one place for every cap, checked in headers before anything is decoded."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Limits:
    """Caps on encoded files, pictures and videos. The defaults take what cameras make and refuse bombs."""

    pixels: int = 64_000_000
    """Largest picture, and largest frame of a video, in pixels."""
    side: int = 32_768
    """Longest side of a picture or a frame."""
    image_bytes: int = 256 << 20
    """Largest encoded picture."""
    animation: Literal["first", "refuse"] = "first"
    """A picture of several frames (GIF, WebP, APNG, TIFF): its first frame is taken, or it is refused."""
    video_bytes: int = 8 << 30
    """Largest video file."""
    video_frames: int = 1_000_000
    """Most frames of a video file."""
    video_seconds: float = 6 * 3600
    """Longest video file."""
    clip_pixels: int = 1_600_000_000
    """Most pixels of the frames that are taken from one video, 3 bytes each in memory: 768 frames of 1920 x 1080."""


DEFAULTS = Limits()
