"""What is compared of each sample, as arrays."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import BadSample, placed
from ..hashing import media_key, picture_hash, text_key
from ..sample import Sample
from .near import Equal, Floats, Hamming, Ints, keep_first

Compare = Literal["sample", "pictures", "text"]


@dataclass(frozen=True)
class Prints:
    """Fingerprints of N samples that show M pictures.

    groups  (N, 16)  what must be equal for two samples to be the same
    counts  (N,)     pictures that are compared by their hash
    hashes  (M,)     perceptual hashes of those, sample by sample
    pixels  (N,)     of all pictures of the sample, where asked for
    """

    groups: NDArray[np.uint8]
    counts: Ints
    hashes: NDArray[np.uint64]
    pixels: Ints

    def __len__(self) -> int:
        return len(self.groups)

    def save(self, file: Path) -> None:
        with file.open("wb") as out:
            np.savez(out, groups=self.groups, counts=self.counts, hashes=self.hashes, pixels=self.pixels)

    @staticmethod
    def load(file: Path) -> "Prints":
        with np.load(file, allow_pickle=False) as found:
            return Prints(found["groups"], found["counts"], found["hashes"], found["pixels"])

    @staticmethod
    def join(parts: Sequence["Prints"]) -> "Prints":
        return Prints(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("groups", "counts", "hashes", "pixels")
            )
        )


def prints(samples: Iterable[Sample], compare: Compare, perceptual: bool, pixels: bool = False) -> Prints:
    """The fingerprints of samples. Raises BadSample for pictures that cannot be opened."""
    groups, counts, hashes, sizes = [], [], [], []
    for sample in samples:
        with placed(sample):
            group, shown = _print(sample, compare, perceptual)
            size = sum(_pixels(sample, number) for number in range(len(sample.media))) if pixels else 0
        groups.append(np.frombuffer(group, np.uint8))
        counts.append(len(shown))
        hashes += shown
        sizes.append(size)
    return Prints(
        np.array(groups, np.uint8).reshape(-1, 16),
        np.array(counts, np.int64),
        np.array(hashes, np.uint64),
        np.array(sizes, np.int64),
    )


def _print(sample: Sample, compare: Compare, perceptual: bool) -> tuple[bytes, list[int]]:
    """16 bytes that must be equal, and the hashes that must be near."""
    same = hashlib.sha256(text_key(sample) if compare != "pictures" else b"")
    hashes: list[int] = []
    if compare != "text":
        for media in sample.media:
            seen = picture_hash(media, sample.opener) if perceptual else None
            if seen is None:
                same.update(media_key(media, sample.opener))
            else:
                same.update(b"picture")
                hashes.append(seen)
    return same.digest()[:16], hashes


def _pixels(sample: Sample, number: int) -> int:
    media = sample.media[number]
    if media.kind != "image":
        return 0
    try:
        width, height = sample.opener.size(media)
    except BadSample as error:
        if error.reason == "media_remote":
            return 0
        raise
    return width * height


def same(found: Prints, order: Ints, radius: int | None) -> tuple[Ints, Floats]:
    """For each sample the one that is kept in its place, and the distance in bits; `order` as in `keep_first`.

    Without a radius only what is equal is the same.
    """
    starts = np.concatenate([[0], np.cumsum(found.counts)]).astype(np.int64)
    groups = _numbered(found.groups)
    equal = groups if radius is None else _with_hashes(groups, found, starts)
    kept, distance = keep_first(order, Equal(equal))
    if radius is None:
        return kept, distance
    # What is equal is near to the same others, so that one of each is looked up.
    ones = np.flatnonzero(kept == np.arange(len(kept)))
    place = np.full(len(kept), -1, np.int64)
    place[ones] = np.arange(len(ones))
    picked = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in ones] or [ones]).astype(np.int64)
    fewer = np.concatenate([[0], np.cumsum(found.counts[ones])]).astype(np.int64)
    rest = order[place[order] >= 0]
    near, far = keep_first(place[rest], Hamming(groups[ones], found.hashes[picked], fewer, radius))
    return ones[near][place[kept]], far[place[kept]]


def _numbered(rows: NDArray[np.uint8]) -> Ints:
    """Equal rows of bytes (N, B) get equal numbers from 0: (N,)."""
    if not len(rows):
        return np.zeros(0, np.int64)
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).ravel()
    return np.unique(whole, return_inverse=True)[1].astype(np.int64)


def _with_hashes(groups: Ints, found: Prints, starts: Ints) -> Ints:
    """Groups of samples whose hashes are all equal, too: (N,)."""
    for picture in range(int(found.counts.max(initial=0))):
        with_it = np.flatnonzero(found.counts > picture)
        hashes = np.zeros(len(groups), np.uint64)
        hashes[with_it] = found.hashes[starts[with_it] + picture]
        both = np.stack([groups.astype(np.uint64), hashes], axis=1)
        groups = _numbered(both.view(np.uint8).reshape(len(groups), 16))
    return groups
