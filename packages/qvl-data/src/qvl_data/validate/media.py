"""What is looked at in a picture or a video: whether it can be opened, its shape, what it states, its content."""

import hashlib
from dataclasses import dataclass

from ..errors import BadSample
from ..media import data_url, image_size, locate, media_name
from ..sample import Media, Sample
from ..tokens import Images, Videos
from ..video import cut

_IMAGES, _VIDEOS = Images(), Videos()
Sizes = dict[int, tuple[int, int]]


@dataclass
class MediaCheck:
    """Opens media.

    pixels   decode pictures whole, and videos up to the last frame that is shown; else read headers only
    """

    pixels: bool

    def check(self, sample: Sample, index: int, sizes: Sizes, found: list[BadSample]) -> bytes | None:
        """The key of a medium (see `_key`); adds its upright size to `sizes` and what is wrong with it to `found`.

        The frames of a video that is given as pictures come first.
        """
        media = sample.media[index]
        try:
            if media.kind == "image":
                sizes[index] = self._picture(sample, media)
            elif media.video is not None and media.video.frames is not None:
                self._frames(media, media.video.frames, sizes)
                return None
            else:
                sizes[index] = self._video(sample, media)
            return _key(sample, media, self.pixels)
        except BadSample as error:
            found.append(error)
            return None

    def _picture(self, sample: Sample, media: Media) -> tuple[int, int]:
        opener = sample.opener
        if self.pixels:
            size = opener.open(media).size
        else:
            size = image_size(media, opener.root, opener.allow_root, opener.limits)
            if None not in (media.width, media.height) and size != (media.width, media.height):
                said = f"is {size[0]} x {size[1]} pixels upright, not {media.width} x {media.height} as stated"
                raise BadSample("media_stated_size", f"{said}; correct its width and height", media_name(media))
        try:
            _IMAGES.resized(*size)
        except ValueError as error:
            raise BadSample("media_size", str(error), media_name(media)) from None
        return size

    def _frames(self, media: Media, frames: tuple[int, ...], sizes: Sizes) -> None:
        if media.video is None or media.video.fps is None:
            problem = "a video given as frames needs `fps`, the frames per second"
            raise BadSample("video_fps", problem, media_name(media))
        known = {sizes[frame] for frame in frames if frame in sizes}
        if len(known) > 1:
            raise BadSample("video_frames", "the frames of a video must have one size; resize them", media_name(media))
        for size in known:
            _check_clip(media, len(frames), size)

    def _video(self, sample: Sample, media: Media) -> tuple[int, int]:
        header = sample.opener.video(media)
        name = media_name(media)
        clip = media.video
        part = cut(header, clip.start if clip else None, clip.end if clip else None, name)
        size = header.width, header.height
        _check_clip(media, len(part), size)
        if self.pixels:
            sample.opener.frames(media, header, [part[0], part[-1]])
        return size


def _check_clip(media: Media, frames: int, size: tuple[int, int]) -> None:
    try:
        _VIDEOS.resized(frames, *size)
    except ValueError as error:
        raise BadSample("media_size", str(error), media_name(media)) from None


def _key(sample: Sample, media: Media, content: bool) -> bytes:
    """What two equal media have in common: a hash of the file; without `content` of its path, where it has one."""
    if media.bytes is not None:
        return _digest(media.bytes)
    if media.path is None:
        url = media.url or ""
        return _digest(data_url(url)[1] if url.startswith("data:") else url.encode())
    if not content:
        return _digest(media.path.encode("utf-8", "surrogatepass"))
    with locate(media.path, sample.opener.root, sample.opener.allow_root).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
