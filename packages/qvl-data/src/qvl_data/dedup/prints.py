"""What is compared of each sample, as arrays."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..dataset import Dataset
from ..errors import BadSample, placed
from ..hashing import media_key, minhash, picture_hash, said, text_key
from ..job import Job, complete
from ..progress import track
from ..sample import Media, Sample
from ..walk import Step, steps, walk
from .near import Equal, Floats, Hamming, Index, Ints, Similar, keep_first, numbered

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
    words   (N, S)   signature of the text; S is 64, or 0 where it is not asked for
    """

    groups: NDArray[np.uint8]
    counts: Ints
    hashes: NDArray[np.uint64]
    pixels: Ints
    words: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.groups)

    def save(self, file: Path) -> None:
        with file.open("wb") as out:
            np.savez(out, **{field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def load(file: Path) -> "Prints":
        with np.load(file, allow_pickle=False) as found:
            return Prints(**{field.name: found[field.name] for field in fields(Prints)})

    @staticmethod
    def join(parts: Sequence["Prints"]) -> "Prints":
        names = [field.name for field in fields(Prints)]
        return Prints(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Fingerprint:
    """Takes the fingerprints of one step of samples; picklable, for worker processes.

    pixels  count the pixels of each sample's pictures, too
    words   take the signature of its text, too
    strict  raise BadSample where a picture cannot be opened; else such a sample is the same as no other
    """

    sets: Mapping[str, Dataset]
    compare: Compare = "sample"
    perceptual: bool = False
    pixels: bool = False
    words: bool = False
    strict: bool = True

    def __call__(self, step: Step) -> Prints:
        data = self.sets[step.split]
        rows = [self._row(data, step.split, index) for index in range(step.start, step.end)]
        groups, hashes, pixels, words = zip(*rows, strict=True)
        return Prints(
            np.frombuffer(b"".join(groups), np.uint8).reshape(-1, 16),
            np.array([len(shown) for shown in hashes], np.int64),
            np.array(list(itertools.chain(*hashes)), np.uint64),
            np.array(pixels, np.int64),
            np.array(words, np.uint32).reshape(len(rows), -1),
        )

    def _row(self, data: Dataset, split: str, index: int) -> tuple[bytes, list[int], int, Any]:
        """Group, hashes, pixels and signature of one sample."""
        try:
            sample = data[index]
            with placed(sample):
                group, hashes = _print(sample, self.compare, self.perceptual)
                pixels = sum(_pixels(sample, media) for media in sample.media) if self.pixels else 0
            return group, hashes, pixels, minhash(said(sample)) if self.words else ()
        except BadSample:
            if self.strict:
                raise
            return hashlib.sha256(f"{split}\0{index}".encode()).digest()[:16], [], 0, minhash("") if self.words else ()


def all_prints(fingerprint: Fingerprint, job: Job, workers: int = 1) -> Prints:
    """The fingerprints of all samples of all sets, in order; kept step by step in files of the job's folder."""
    todo = steps(fingerprint.sets, STEP)
    files = {step: job.home / f"{number:06d}.npz" for number, step in enumerate(todo)}
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


def same(found: Prints, order: Ints, radius: int | None = None, share: float | None = None) -> tuple[Ints, Floats]:
    """For each sample the one that is kept in its place, and the distance; `order` as in `keep_first`.

    radius  bits of 64 in which pictures may differ
    share   least share of the signature of their texts in which samples agree

    Without either, only what is equal is the same.
    """
    starts = np.concatenate([[0], np.cumsum(found.counts)]).astype(np.int64)
    groups = numbered(found.groups)
    kept, distance = keep_first(order, Equal(_with_hashes(groups, found, starts)))
    if radius is None and share is None:
        return kept, distance
    # What is equal is near to the same others, so that one of each is looked up.
    ones = np.flatnonzero(kept == np.arange(len(kept)))
    index: Index
    if share is not None:
        index = Similar(found.words[ones], share)
    else:
        fewer = np.concatenate([[0], np.cumsum(found.counts[ones])]).astype(np.int64)
        picked = np.repeat(starts[ones] - fewer[:-1], found.counts[ones]) + np.arange(fewer[-1])
        index = Hamming(groups[ones], found.hashes[picked], fewer, radius or 0)
    place = np.full(len(kept), -1, np.int64)
    place[ones] = np.arange(len(ones))
    rest = order[place[order] >= 0]
    near, far = keep_first(place[rest], index)
    return ones[near][place[kept]], far[place[kept]]


def _with_hashes(groups: Ints, found: Prints, starts: Ints) -> Ints:
    """Groups of samples whose hashes are all equal, too: (N,)."""
    for picture in range(int(found.counts.max(initial=0))):
        with_it = np.flatnonzero(found.counts > picture)
        hashes = np.zeros(len(groups), np.uint64)
        hashes[with_it] = found.hashes[starts[with_it] + picture]
        both = np.stack([groups.astype(np.uint64), hashes], axis=1)
        groups = numbered(both.view(np.uint8).reshape(len(groups), 16))
    return groups
