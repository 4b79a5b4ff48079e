"""What is compared of each sample, as arrays."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..dataset import Dataset
from ..errors import BadSample, placed
from ..hashing import media_key, picture_hash, text_key
from ..job import Job, complete
from ..progress import track
from ..sample import Media, Sample
from ..walk import Step, steps, walk
from .near import Equal, Floats, Hamming, Ints, keep_first

Compare = Literal["sample", "pictures", "text"]
STEP = 1000
"""Samples between two entries of the journal."""
PRINTS = ".prints"
"""Folder of the fingerprints of a work that is not finished."""


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


@dataclass(frozen=True)
class Fingerprint:
    """Takes the fingerprints of one step of samples; picklable, for worker processes.

    pixels  count the pixels of each sample's pictures, too
    strict  raise BadSample where a picture cannot be opened; else such a sample is the same as no other
    """

    sets: Mapping[str, Dataset]
    compare: Compare = "sample"
    perceptual: bool = False
    pixels: bool = False
    strict: bool = True

    def __call__(self, step: Step) -> Prints:
        data = self.sets[step.split]
        rows = [self._row(data, step.split, index) for index in range(step.start, step.end)]
        groups, hashes, pixels = zip(*rows, strict=True)
        return Prints(
            np.frombuffer(b"".join(groups), np.uint8).reshape(-1, 16),
            np.array([len(shown) for shown in hashes], np.int64),
            np.array(list(itertools.chain(*hashes)), np.uint64),
            np.array(pixels, np.int64),
        )

    def _row(self, data: Dataset, split: str, index: int) -> tuple[bytes, list[int], int]:
        """Group, hashes and pixels of one sample."""
        try:
            sample = data[index]
            with placed(sample):
                group, hashes = _print(sample, self.compare, self.perceptual)
                pixels = sum(_pixels(sample, media) for media in sample.media) if self.pixels else 0
            return group, hashes, pixels
        except BadSample:
            if self.strict:
                raise
            return hashlib.sha256(f"{split}\0{index}".encode()).digest()[:16], [], 0


def all_prints(fingerprint: Fingerprint, home: Path, job: Job, workers: int = 1) -> Prints:
    """The fingerprints of all samples of all sets, in order; kept step by step in files of `home`."""
    todo = steps(fingerprint.sets, STEP)
    files = {step: home / PRINTS / f"{number:06d}.npz" for number, step in enumerate(todo)}
    rest = [step for step in todo if not job.is_done(f"prints {step}")]
    for step, found in track(walk(fingerprint, rest, workers), "fingerprints", len(todo), len(todo) - len(rest)):
        with complete(files[step]) as aside:
            found.save(aside)
        job.step(f"prints {step}", lambda: None)
    return Prints.join([Prints.load(file) for file in files.values()])


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


def _pixels(sample: Sample, media: Media) -> int:
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
