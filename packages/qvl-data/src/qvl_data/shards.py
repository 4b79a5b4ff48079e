"""A split in shards: which samples each holds and what it is called, so that a long work can stop between two of them.

Figures of the shards add up to those of the data set, for its card.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from .sample import Sample

SAMPLES = 5000
"""Samples in a shard."""


@dataclass(frozen=True)
class Shard:
    """Samples `start` to `stop` (exclusive) of a split, in the file `name`."""

    split: str
    name: str
    start: int
    stop: int

    @property
    def indices(self) -> range:
        return range(self.start, self.stop)


def plan(split: str, count: int, suffix: str, size: int = SAMPLES) -> list[Shard]:
    """The shards of a split of `count` samples: `train.parquet`, or `train-00000-of-00003.parquet` and so on."""
    starts = range(0, count, size)
    if len(starts) <= 1:
        return [Shard(split, f"{split}{suffix}", 0, count)]
    return [
        Shard(split, f"{split}-{number:05d}-of-{len(starts):05d}{suffix}", start, min(start + size, count))
        for number, start in enumerate(starts)
    ]


@dataclass
class Figures:
    """What a shard holds."""

    samples: int = 0
    images: int = 0
    videos: int = 0
    answers: int = 0
    """Assistant turns that are learned from."""
    tasks: dict[str, int] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    """Samples by licence; `unknown` where none is stated."""
    bytes: int = 0
    sha256: str = ""
    """Of the file."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    """Samples that could not be used: place, id, reason, problem. One that would come several times counts once."""

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        self.samples += 1
        self.images += sum(media.kind == "image" for media in sample.media)
        self.videos += sum(media.kind == "video" for media in sample.media)
        self.answers += sum(message.trained for message in sample.messages)
        for counts, key in ((self.tasks, sample.task), (self.licenses, sample.meta.license or "unknown")):
            counts[key] = counts.get(key, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def total(cls, parts: "Iterable[Self | dict[str, Any]]") -> Self:
        """The figures of several shards together; `sha256` stays empty."""
        total = cls()
        for given in parts:
            part = given if isinstance(given, Figures) else cls(**given)
            for name in ("samples", "images", "videos", "answers", "bytes"):
                setattr(total, name, getattr(total, name) + getattr(part, name))
            total.tasks = dict(Counter(total.tasks) + Counter(part.tasks))
            total.licenses = dict(Counter(total.licenses) + Counter(part.licenses))
            known = {entry["place"] for entry in total.left_out}
            total.left_out = total.left_out + [entry for entry in part.left_out if entry["place"] not in known]
        return total
