"""What a chat shows of a sample's media: sizes of pictures, and which frames of a video at which times.

`Shown` knows it from headers alone, `Pictures` opens the media, each once. Both say the same, or opening raises
BadSample: tokens and pixels never differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import BadSample
from .media import media_name
from .sample import Sample

if TYPE_CHECKING:
    from .video import Header


@dataclass(frozen=True)
class Clip:
    """The frames that are shown of a video.

    numbers  of the frames, ascending; one may come twice
    total    frames of the video, or of the part that start and end leave
    fps      frames per second of the video: frame n stands at n / fps seconds
    header   of a video file; None: the frames are pictures of the sample
    """

    width: int
    height: int
    numbers: tuple[int, ...]
    total: int
    fps: float
    header: "Header | None" = None

    def times(self, group: int) -> list[float]:
        """The middle, in seconds, of each `group` of frames that share patches; the last frame fills the last group."""
        times = [number / self.fps for number in self.numbers]
        times += times[-1:] * (-len(times) % group)
        return [(times[i] + times[i + group - 1]) / 2 for i in range(0, len(times), group)]

    @property
    def metadata(self) -> dict[str, Any]:
        """What transformers' video processor wants to know."""
        return {"total_num_frames": self.total, "fps": self.fps, "frames_indices": list(self.numbers)}


class Shown:
    """A sample's media as a processor will show them, from their headers."""

    def __init__(self, sample: Sample, processor: Any) -> None:
        self.sample = sample
        self._opener = sample.opener
        self._processor = processor
        self._clips: dict[int, Clip] = {}

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a picture. Raises BadSample."""
        return self._opener.size(self.sample.media[index])

    def clip(self, index: int) -> Clip:
        """What is shown of a video. Raises BadSample."""
        if index not in self._clips:
            video = self.sample.media[index].video
            listed = video is not None and video.frames is not None
            self._clips[index] = self._listed(index) if listed else self._file(index)
        return self._clips[index]

    def name(self, index: int) -> str:
        """What to call a picture or video in a message; a video of pictures is called after its first."""
        media = self.sample.media[index]
        frames = media.video.frames if media.video is not None else None
        if frames:
            return f"{media_name(media)} ({media_name(self.sample.media[frames[0]])}, ...)"
        return media_name(media)

    def _listed(self, index: int) -> Clip:
        """A video given as pictures: all of them are shown."""
        video = self.sample.media[index].video
        assert video is not None
        if not video.frames:
            raise BadSample("video_frames", "a video given as frames needs at least one", self.name(index))
        if video.fps is None:
            problem = "a video given as frames needs `fps`, the frames per second"
            raise BadSample("video_fps", problem, self.name(index))
        width, height = self.size(video.frames[0])
        count = len(video.frames)
        return Clip(width, height, tuple(range(count)), count, video.fps)

    def _file(self, index: int) -> Clip:
        """A video file: frames between `start` and `end`, at the processor's rate or the sample's own."""
        from .video import cut

        media = self.sample.media[index]
        video, settings = media.video, self._processor.video_processor
        header = self._opener.video(media)
        start, end, fps = (video.start, video.end, video.fps) if video is not None else (None, None, None)
        part = cut(header, start, end, self.name(index))
        metadata = SimpleNamespace(total_num_frames=len(part), fps=header.fps)
        count = getattr(settings, "num_frames", None) if fps is None else None
        chosen = settings.sample_frames(metadata, num_frames=count, fps=fps or settings.fps)
        numbers = tuple(part[int(number)] for number in chosen)
        size = self._opener.changed_size((header.width, header.height))
        return Clip(*size, numbers, len(part), header.fps, header)


class Pictures(Shown):
    """The pictures of a sample, each opened once; those that are `given`, one for each entry of media, are opened."""

    def __init__(self, sample: Sample, processor: Any, given: Sequence[Image.Image | None] | None) -> None:
        super().__init__(sample, processor)
        if given is not None and len(given) != len(sample.media):
            problem = f"{len(given)} opened pictures for {len(sample.media)} media; give one for each"
            raise BadSample("media_count", problem)
        self._opened = {index: picture for index, picture in enumerate(given or ()) if picture is not None}

    def __getitem__(self, index: int) -> Image.Image:
        if index not in self._opened:
            self._opened[index] = self._opener.open(self.sample.media[index])
        return self._opened[index]

    def size(self, index: int) -> tuple[int, int]:
        return self[index].size

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """The frames of a video that are shown: (T, H, W, 3). Raises BadSample."""
        media, clip = self.sample.media[index], self.clip(index)
        if clip.header is not None:
            return self._opener.frames(media, clip.header, clip.numbers)
        frames = [self[frame] for frame in (media.video and media.video.frames) or ()]
        if len({frame.size for frame in frames}) > 1:
            problem = "the frames of a video must have one size; resize them"
            raise BadSample("video_frames", problem, self.name(index))
        return np.stack([np.asarray(frame) for frame in frames])
