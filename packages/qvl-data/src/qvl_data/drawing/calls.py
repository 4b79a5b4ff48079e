"""What calls of pipelines have in common: prompts with their pictures, seeds, and the pictures that come back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.errors import BadInput, QVLError


@dataclass(frozen=True)
class Drawn:
    """What a call gives: pictures, in the order of prompts and, within one, of seeds."""

    images: list[Image.Image]


def paired(
    texts: "str | Sequence[str]", image: Any, name: str = "prompts"
) -> list[tuple[str, tuple[Image.Image, ...]]]:
    """Each text with the pictures that it speaks of.

    image  None, a picture, or several, which all texts speak of; or a list for each text
    name   what the caller calls texts

    Raises BadInput for another number of lists than of texts.
    """
    said = [texts] if isinstance(texts, str) else list(texts)
    if image is None:
        return [(text, ()) for text in said]
    if isinstance(image, Image.Image):
        image = [image]
    lists = [image] * len(said) if all(isinstance(one, Image.Image) for one in image) else list(image)
    if len(lists) != len(said):
        raise BadInput(f"image: {len(lists)} lists of pictures for {len(said)} {name}; give one for each.")
    return [(text, tuple(shown)) for text, shown in zip(said, lists, strict=True)]


def seeds_of(seed: "int | Sequence[int]", count: int, each: int) -> list[int]:
    """A seed for each of `count` pictures, `each` of a prompt: one that is given counts up within a prompt.

    Raises BadInput for another number of seeds than of pictures.
    """
    if isinstance(seed, int):
        return [seed + index % each for index in range(count)]
    if len(seed) != count:
        raise BadInput(f"seed: {len(seed)} seeds for {count} pictures; give one for each, or one number.")
    return list(seed)


def check_counts(**counts: int) -> None:
    """Raise BadInput, naming it, for a count of which there is none."""
    for name, count in counts.items():
        if count < 1:
            raise BadInput(f"{name}: {count} of them give no picture; ask for one or more.")


def pictures(pixels: NDArray[np.float32]) -> list[Image.Image]:
    """RGB pictures of (B, 3, H, W) in [-1, 1]; what lies beyond is cut off."""
    values = np.rint((pixels.clip(-1, 1) + 1) * np.float32(127.5)).astype(np.uint8)
    return [Image.fromarray(one) for one in values.transpose(0, 2, 3, 1)]


def check_finite(finite: bool, dtype: Any) -> None:
    """Raise QVLError for pictures of a model in a type of torch that have numbers which are not finite."""
    if finite:
        return
    if str(dtype) == "torch.float16":
        raise QVLError(
            "pictures have numbers that are not finite, for float16 ends at 65,504; draw on a device that has "
            "bfloat16, or in Python with from_pretrained(..., torch_dtype=torch.float32)."
        )
    raise QVLError(
        "pictures have numbers that are not finite: the model's weights are damaged, or its training went astray; draw "
        "with an earlier checkpoint."
    )
