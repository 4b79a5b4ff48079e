"""Which digit moves, and which way? Short videos (MP4) of a handwritten digit that crosses the picture.

Writing them needs PyAV: pip install "qvl-data[video]".
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from qvl_core.errors import BadInput

from ..order import mix
from ..sample import Media, Message, Meta, Part, Sample
from .digits import LICENSE, arrays, indices
from .scenes import drawn
from .split import Split

COUNTS: dict[Split, int] = {"train": 200, "validation": 25, "test": 50}
FPS, FRAMES, SIDE = 8, 16, 96
_WAYS = {"to the right": (1, 0), "to the left": (-1, 0), "down": (0, 1), "up": (0, -1)}


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """200, 25 and 50 videos of two seconds. Raises BadInput without PyAV."""
    numbers, labels = indices(split, seed), arrays()[1]
    for index in range(COUNTS[split]):
        number = numbers[index % len(numbers)]
        way = list(_WAYS)[mix(seed, COUNTS[split], index) % len(_WAYS)]
        clip = Media(
            kind="video", bytes=encoded(moving(number, *_WAYS[way])), mime="video/mp4", width=SIDE, height=SIDE,
            origin=f"video/{split}-{index:03d}.mp4",
        )  # fmt: skip
        question = "Which digit is it, and which way does it move?"
        yield Sample(
            id=f"video-{split}-{index:03d}",
            task="chat",
            media=(clip,),
            messages=(
                Message(role="user", parts=(Part(type="video", media=0), Part(type="text", text=question))),
                Message(role="assistant", parts=(Part(type="text", text=f"{labels[number]}, {way}"),)),
            ),
            meta=Meta(dataset="video", license=LICENSE, split=split),
        )


def moving(number: int, dx: int, dy: int) -> list[Image.Image]:
    """The frames of digit `number` crossing the picture."""
    digit, room = drawn(number, 48), SIDE - 48
    frames = []
    for frame in range(FRAMES):
        along = round(room * frame / (FRAMES - 1))
        x = room // 2 if dx == 0 else along if dx > 0 else room - along
        y = room // 2 if dy == 0 else along if dy > 0 else room - along
        canvas = Image.new("RGB", (SIDE, SIDE))
        canvas.paste(digit, (x, y))
        frames.append(canvas)
    return frames


def encoded(frames: list[Image.Image]) -> bytes:
    """Frames as an H.264 MP4. Raises BadInput without PyAV."""
    try:
        import av
    except ImportError:
        raise BadInput('writing videos needs PyAV: pip install "qvl-data[video]".') from None

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # x264's assembler routines now and then give other bytes for the same frames; its C code does not.
        options = {"crf": "20", "threads": "1", "x264-params": "no-asm=1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
