"""Pictures of a prompt share a budget of tokens: what the processor would show larger is made smaller, in its shape.

    pictures, processor = within(pictures, tokens, processor, "prompt")

The processor that comes back shows each picture at the size that it has: its minimum is one token, since a released
one (64 tokens) may be over a picture's share.
"""

import copy
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

from qvl_data.errors import BadSample
from qvl_data.tokens import Images


def within(
    pictures: Sequence[Image.Image], tokens: int, processor: Any, name: str
) -> tuple[Sequence[Image.Image], Any]:
    """The pictures at sizes of at most `tokens` tokens together, and the processor that leaves them so.

    Pictures that the processor itself shows within their shares stay as they are, and so does the processor. Raises
    BadSample.
    """
    share = tokens // len(pictures)
    if share == 0:
        problem = (
            f"{len(pictures)} pictures share {tokens} tokens, and each needs one; give fewer, or raise image_tokens"
        )
        raise BadSample("too_long", problem, name)
    part = processor.image_processor
    own = Images(part.size["shortest_edge"], part.size["longest_edge"], part.patch_size, part.merge_size)
    try:
        shown = [own.resized(*picture.size) for picture in pictures]
    except ValueError as error:
        raise BadSample("media_size", str(error), name) from None
    side = part.patch_size * part.merge_size
    sizes = [_limited(*picture.size, size, share, side) for picture, size in zip(pictures, shown, strict=True)]
    if sizes == shown:
        return pictures, processor
    resized = [picture.resize(size, Image.Resampling.BICUBIC) for picture, size in zip(pictures, sizes, strict=True)]
    return resized, _without_minimum(processor, part.size["longest_edge"])


def _limited(width: int, height: int, shown: tuple[int, int], tokens: int, side: int) -> tuple[int, int]:
    """The size at which a picture of this size is `shown`, or one of at most `tokens` tokens that are `side` wide."""
    if shown[0] * shown[1] <= tokens * side**2:
        return shown
    wide, high = sides(width, height, tokens)
    return wide * side, high * side


def sides(width: int, height: int, tokens: int) -> tuple[int, int]:
    """Whole numbers whose product is at most `tokens`, as near to the shape of a picture as such numbers are."""
    if width < height:
        return sides(height, width, tokens)[::-1]
    shape = width / height
    short = math.sqrt(tokens / shape)
    options = [
        (min(round(shape * high), tokens // high), high) for high in (max(1, math.floor(short)), math.ceil(short))
    ]
    return min(options, key=lambda size: abs(math.log(size[0] / size[1] / shape)))


@lru_cache(maxsize=1)
def _without_minimum(processor: Any, most: int) -> Any:
    """A processor that shows pictures as small as one token."""
    lowered, part = copy.copy(processor), copy.copy(processor.image_processor)
    least = (part.patch_size * part.merge_size) ** 2
    part.size = type(part.size)(shortest_edge=least, longest_edge=most)
    lowered.image_processor = part
    return lowered
