"""How many tokens a picture or a clip costs, from its size alone: the arithmetic of Qwen3-VL's processors.

    Images().tokens(640, 480)               # 300: one token covers 32 x 32 pixels of the resized picture
    Videos().tokens(frames=16, 640, 480)    # without the time stamps between the frames, which are text
    Videos().sample(total=300, fps=30.0)    # the frames that are shown: 2 per second

Equal, exactly, to transformers 5.23 (`Qwen2VLImageProcessor`, `Qwen3VLVideoProcessor`); the tests compare them.
"""

import math
from dataclasses import dataclass

MAX_RATIO = 200
"""Longest side over shortest side that the processors still take."""


@dataclass
class Images:
    """Settings of the picture processor; the defaults are those of the released Qwen3-VL."""

    min_pixels: int = 65_536
    """Smallest picture after resizing, in pixels."""
    max_pixels: int = 16_777_216
    """Largest picture after resizing, in pixels."""
    patch: int = 16
    merge: int = 2
    """Patches per token, each way."""

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that the picture is resized to. Raises ValueError."""
        return _fit(width, height, 1, 1, self.patch * self.merge, self.min_pixels, self.max_pixels)

    def patches(self, width: int, height: int) -> int:
        """Patches of a picture of this size. Raises ValueError."""
        width, height = self.resized(width, height)
        return (width // self.patch) * (height // self.patch)

    def tokens(self, width: int, height: int) -> int:
        """Tokens of a picture of this size. Raises ValueError."""
        return self.patches(width, height) // self.merge**2


@dataclass
class Videos:
    """Settings of the video processor; the defaults are those of the released Qwen3-VL."""

    min_pixels: int = 4_096
    """Smallest clip after resizing, in pixels of all its frames."""
    max_pixels: int = 25_165_824
    """Largest clip after resizing, in pixels of all its frames."""
    patch: int = 16
    merge: int = 2
    temporal: int = 2
    """Frames that share a patch."""
    fps: float | None = 2
    """Frames per second that are shown."""
    frames: int | None = None
    """Frames that are shown, where `fps` is None."""
    min_frames: int = 4
    max_frames: int = 768
    frame_tokens: int | None = None
    """Most tokens of one frame, as qwen-vl-utils counts them; None: only the whole clip is limited."""

    def sample(self, total: int, fps: float | None, wanted: float | None = None) -> list[int]:
        """Which of `total` frames are shown, evenly spaced from the first to the last.

        fps     frames per second of the video; unknown: taken as 24
        wanted  frames per second to show; default: the settings'
        """
        wanted = wanted if wanted is not None else self.fps
        if wanted is not None and self.frames is not None:
            raise ValueError("a rate and a number of frames exclude each other; give one of them")
        count = self.frames
        if count is None and wanted is not None:
            count = int(total / (24 if fps is None else fps) * wanted)
            count = min(max(count, self.min_frames), self.max_frames, total)
        if count is None:
            count = min(max(total, self.min_frames), self.max_frames)
        if count == 1:
            return [0]
        step = (total - 1) / (count - 1)
        return [round(i * step) for i in range(count - 1)] + [total - 1]

    def resized(self, frames: int, width: int, height: int) -> tuple[int, int]:
        """Width and height that the frames of a clip are resized to. Raises ValueError."""
        check_frames(frames, self.temporal)
        factor, most = self.patch * self.merge, self.max_pixels
        if self.frame_tokens is not None:
            share = min(self.frame_tokens * factor * factor, self.max_pixels // frames)
            most = max(share, int(self.min_pixels * 1.05)) * frames
        if min(width, height) < factor:  # as upstream: enlarged before anything else, in whole pixels
            scale = max(factor / height, factor / width)
            width, height = int(width * scale), int(height * scale)
        return _fit(width, height, frames, self.temporal, factor, self.min_pixels, most)

    def patches(self, frames: int, width: int, height: int) -> int:
        """Patches of a clip of this many frames of this size. Raises ValueError."""
        width, height = self.resized(frames, width, height)
        return math.ceil(frames / self.temporal) * (width // self.patch) * (height // self.patch)

    def tokens(self, frames: int, width: int, height: int) -> int:
        """Tokens of a clip, its time stamps left out. Raises ValueError."""
        return self.patches(frames, width, height) // self.merge**2


def check_ratio(width: int, height: int) -> None:
    """Raise ValueError for a picture that is too long for its width."""
    if max(width, height) / min(width, height) > MAX_RATIO:
        raise ValueError(
            f"{width} x {height} pixels is an aspect ratio over {MAX_RATIO}, which Qwen3-VL does not take; crop it"
        )


def check_frames(frames: int, temporal: int = 2) -> None:
    """Raise ValueError for a clip that is too short."""
    if frames < temporal:
        shown = f"a video of {frames} frame{'s' * (frames != 1)}"
        raise ValueError(f"{shown}, of which Qwen3-VL needs at least {temporal}; show it as a picture")


def _fit(width: int, height: int, frames: int, temporal: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """The nearest multiples of `factor` that keep frames x width x height between `least` and `most`.

    A very long picture may end above `most`, because no side goes below `factor`.
    """
    check_ratio(width, height)
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    shown = round(frames / temporal) * temporal
    if shown * wide * high > most:
        scale = math.sqrt((frames * height * width) / most)
        wide = max(factor, math.floor(width / scale / factor) * factor)
        high = max(factor, math.floor(height / scale / factor) * factor)
    elif shown * wide * high < least:
        scale = math.sqrt(least / (frames * height * width))
        wide = math.ceil(width * scale / factor) * factor
        high = math.ceil(height * scale / factor) * factor
    return wide, high
