"""One step of a validation: what is wrong with its samples, and by which hashes they are compared with all others."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput

from ..dataset import Dataset
from ..errors import BadSample
from ..formats import recognise
from ..sample import Sample
from ..walk import Step
from .checks import Checks
from .finding import Finding

ID, CONTENT, MEDIA = range(3)
HASHES = np.dtype([("kind", "u1"), ("index", "<u8"), ("hash", "<u8")])
"""A hash of one thing about sample `index` of a split: its id, its content, or a picture or video that it shows."""


@dataclass
class Checked:
    """What came out of one step.

    hashes      (N,) of HASHES
    unlicensed  samples that state no licence
    unread      samples that could not be read
    """

    findings: list[Finding] = field(default_factory=list)
    hashes: NDArray[Any] = field(default_factory=lambda: np.zeros(0, HASHES))
    unlicensed: int = 0
    unread: int = 0


@dataclass
class Work:
    """Checks the samples of a step; pickled into worker processes."""

    sets: Mapping[str, Dataset]
    checks: Checks

    def __call__(self, step: Step) -> Checked:
        data = self.sets[step.split]
        done = Checked()
        hashes: list[tuple[int, int, int]] = []
        for index in range(step.start, step.end):
            place = data.rows.place(index)
            sample, problems, keys = self.check(data, index)
            name = sample.id if sample is not None else ""
            done.findings += [Finding.of(problem, place, name, step.split, index) for problem in problems]
            if sample is None:
                done.unread += 1
                continue
            done.unlicensed += sample.meta.license is None
            hashes += [(kind, index, number) for kind, number in _hashes(sample, keys)]
        done.hashes = np.array(hashes, HASHES)
        return done

    def check(self, data: Dataset, index: int) -> tuple[Sample | None, list[BadSample], list[bytes | None]]:
        """The sample, if it can be read, what is wrong with it, and the keys of its media.

        Whatever the data does, nothing is raised; where a check itself fails, that is told like everything else.
        BadInput is raised for what the user's machine lacks.
        """
        try:
            sample = read(data, index)
        except BadSample as error:
            return None, [error], []
        except BadInput as error:
            return None, [BadSample("data_file", str(error).removeprefix(f"{data.file}: "))], []
        except Exception as error:
            return None, [_unexpected(error)], []
        try:
            return sample, *self.checks.problems(sample)
        except BadInput:
            raise
        except Exception as error:
            return sample, [_unexpected(error)], [None] * len(sample.media)


def _unexpected(error: Exception) -> BadSample:
    said = f"could not be checked ({type(error).__name__}: {str(error)[:200]}); please report it"
    return BadSample("unexpected", said)


def read(data: Dataset, index: int) -> Sample:
    """A sample of a data set, also of one in which no row tells the format. Raises BadSample, BadInput."""
    try:
        data.format  # noqa: B018  (recognised once, then known)
    except BadInput:
        row = data.rows[index]  # tells what is wrong with this row
        recognise(row, data.rows.place(index))
        raise
    return data[index]


def _hashes(sample: Sample, keys: list[bytes | None]) -> Iterator[tuple[int, int]]:
    """Kind and 64-bit hash; an id that was made from the content says nothing of its own."""
    if not sample.id.startswith("sha256:"):
        yield ID, hash_of(sample.id.encode("utf-8", "surrogatepass"))
    known = [key for key in keys if key is not None]
    yield from ((MEDIA, int.from_bytes(key[:8], "little")) for key in dict.fromkeys(known))
    if len(known) == sum(media.video is None or media.video.frames is None for media in sample.media):
        yield CONTENT, hash_of(b"\0".join([*_said(sample), *known]))


def _said(sample: Sample) -> Iterator[bytes]:
    """All that a sample says, in pieces that cannot be taken for one another."""
    texts: list[str] = [sample.task]
    for message in sample.messages:
        texts += [message.role, str(message.trained)]
        texts += [part.text or f"{part.type} {part.media} {part.regions}" for part in message.parts]
    texts += [str(media.video) for media in sample.media if media.video is not None]
    texts += [str((region.media, region.kind, region.xy, region.label)) for region in sample.regions]
    if sample.edit is not None:
        texts += [str(sample.edit)]
    return (f"{len(text)} {text}".encode("utf-8", "surrogatepass") for text in texts)


def hash_of(data: bytes) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
