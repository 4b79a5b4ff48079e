"""Random encoded chats with pictures and clips for the tiny model."""

from collections.abc import Sequence

import numpy as np

from qvl_core.qwen3vl.encoded import IGNORE, Encoded

MERGE = 2
Size = tuple[int, int]


def chat(
    tokenizer, seed: int, words: int, pictures: Sequence[Size] = (), clips: Sequence[tuple[int, int, int]] = ()
) -> Encoded:
    """A chat of `words` random words, half of them labels, after pictures (h, w) and clips (t, h, w) in tokens."""
    rng = np.random.default_rng(seed)
    image, video = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    ids = rng.integers(5, 250, 3).tolist()
    for h, w in pictures:
        ids += [*[image] * (h * w), 9]
    for t, h, w in clips:
        ids += [*[video] * (h * w), 9] * t
    ids = np.array([*ids, *rng.integers(5, 250, words)])
    labels = np.where(np.arange(len(ids)) < len(ids) - words // 2, IGNORE, ids)
    types = (ids == image) * 1 + (ids == video) * 2
    images = _media(rng, [(1, h, w) for h, w in pictures])
    return Encoded(str(seed), ids, labels, types, *images, *_media(rng, clips))


def _media(rng, sizes):
    if not sizes:
        return None, None
    grid = np.array([(t, MERGE * h, MERGE * w) for t, h, w in sizes], np.int64)
    return rng.normal(size=(grid.prod(1).sum(), 1536)).astype(np.float32), grid
