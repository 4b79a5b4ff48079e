"""What Sana is told of prompts, remembered from call to call; what was not asked for the longest goes first."""

import hashlib
from collections import OrderedDict

from torch import Tensor

from qvl_core.qwen3vl.encoded import Encoded

MOST = 256  # prompts: 1.2 MB each at 256 queries in 16 bits


class Remembered:
    """Conditions (N, C) of at most `most` prompts."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._told: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, key: bytes) -> Tensor | None:
        if key in self._told:
            self._told.move_to_end(key)
        return self._told.get(key)

    def put(self, key: bytes, told: Tensor) -> None:
        self._told[key] = told.clone()  # a row of a batch would keep the whole batch in memory
        self._told.move_to_end(key)
        while len(self._told) > self.most:
            self._told.popitem(last=False)

    def clear(self) -> None:
        self._told.clear()

    def __len__(self) -> int:
        return len(self._told)


def key_of(prompt: Encoded) -> bytes:
    """What two prompts share only if they are equal: tokens, and pixels of their pictures."""
    digest = hashlib.blake2b(prompt.ids.tobytes())
    for array in (prompt.image_grid, prompt.images):
        if array is not None:
            digest.update(array.tobytes())
    return digest.digest()
