"""The 15 photographs that the package carries (see assets/pictures/ATTRIBUTION.md), and how samples show them."""

import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from PIL import Image

from ..order import mix
from ..sample import Media
from .split import Split

COUNTS: dict[Split, int] = {"train": 240, "validation": 30, "test": 60}
"""Samples in each split of the sets that are made of photographs."""


@dataclass(frozen=True)
class Photo:
    """One photograph and what it shows, in English and Chinese."""

    name: str
    shows: str
    shows_zh: str
    license: str


PHOTOS = (
    Photo("astronaut", "an astronaut", "一位宇航员", "public domain"),
    Photo("brick", "a brick wall", "一面砖墙", "CC0-1.0"),
    Photo("cameraman", "a man with a camera", "一个拿相机的男人", "CC0-1.0"),
    Photo("cat", "a cat", "一只猫", "CC0-1.0"),
    Photo("coffee", "a cup of coffee", "一杯咖啡", "CC0-1.0"),
    Photo("coins", "old coins", "古钱币", "no known copyright restrictions"),
    Photo("flower", "a flower", "一朵花", "CC-BY-2.0"),
    Photo("galaxies", "galaxies", "星系", "public domain"),
    Photo("grass", "grass", "草地", "CC0-1.0"),
    Photo("gravel", "gravel", "碎石", "CC0-1.0"),
    Photo("horse", "a horse", "一匹马", "CC0-1.0"),
    Photo("pagoda", "a pagoda", "一座塔", "CC-BY-2.0"),
    Photo("retina", "the retina of an eye", "眼睛的视网膜", "CC0-1.0"),
    Photo("rocket", "a rocket", "一枚火箭", "public domain"),
    Photo("writing", "handwriting", "手写的字", "public domain"),
)


def photo(split: Split, index: int) -> Photo:
    """The photograph of sample `index` of a split: each comes equally often."""
    return PHOTOS[(index + sum(COUNTS[name] for name in COUNTS if name < split)) % len(PHOTOS)]


@cache
def opened(name: str) -> Image.Image:
    """A photograph, RGB or grey."""
    content = files("qvl_data").joinpath(f"assets/pictures/{name}.jpg").read_bytes()
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def crop(name: str, side: int, *key: int) -> Image.Image:
    """A part of a photograph (at least 85 % of each side) decided by `key`, its longer side `side` pixels."""
    whole = opened(name)
    share = 0.85 + mix(*key, 0) % 1000 / 1000 * 0.15
    width, height = round(whole.width * share), round(whole.height * share)
    left, top = (mix(*key, 1) % (whole.width - width + 1), mix(*key, 2) % (whole.height - height + 1))
    part = whole.crop((left, top, left + width, top + height))
    scale = side / max(part.size)
    return part.resize((round(part.width * scale), round(part.height * scale)), Image.Resampling.LANCZOS)


def image(picture: Image.Image, name: str) -> Media:
    """A picture as embedded media: PNG without loss, its size stated. `name` is its path when it is laid beside."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    width, height = picture.size
    return Media(kind="image", bytes=file.getvalue(), mime="image/png", width=width, height=height, origin=name)
