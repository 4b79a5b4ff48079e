"""What does this picture show? Crops of the photographs, asked about in English and Chinese.

All splits show the same 15 photographs, in other crops: the set is for trying things out, not for measuring.
"""

from collections.abc import Iterator

from ..order import mix
from ..sample import Message, Meta, Part, Sample
from .pictures import COUNTS, Photo, crop, image, opened, photo
from .split import Split

SIDE = 160


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """240, 30 and 60 samples: a third in Chinese, a third about colour."""
    for index in range(COUNTS[split]):
        shown = photo(split, index)
        question, answer = _asked(shown, mix(seed, index, 0) % 3)
        picture = crop(shown.name, SIDE, seed, COUNTS[split], index)
        yield Sample(
            id=f"images-{split}-{index:03d}",
            task="chat",
            media=(image(picture, f"images/{split}-{index:03d}-{shown.name}.png"),),
            messages=(
                Message(role="user", parts=(Part(type="image", media=0), Part(type="text", text=question))),
                Message(role="assistant", parts=(Part(type="text", text=answer),)),
            ),
            meta=Meta(dataset="images", license=shown.license, split=split),
        )


def _asked(shown: Photo, kind: int) -> tuple[str, str]:
    if kind == 0:
        return "What does this picture show?", f"It shows {shown.shows}."
    if kind == 1:
        return "这张图片上是什么？", f"{shown.shows_zh}。"
    colour = opened(shown.name).mode == "RGB"
    return "Is this picture in colour or black and white?", "in colour" if colour else "black and white"
