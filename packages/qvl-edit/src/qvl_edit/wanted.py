"""Pictures that an evaluation draws: of which instruction, at which size, and what is known of the right one.

Of a row only what is small is held; its pictures are read anew each time they are needed, so that a data set that
embeds them is never in memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.errors import BadSample, placed
from qvl_data.formats import edit
from qvl_data.hashing import media_key
from qvl_data.media import Opener
from qvl_data.order import chosen
from qvl_data.sample import Media, Sample
from qvl_data.sources import Item, Mixture
from qvl_edit.cut import Bucket
from qvl_edit.geometry import Geometry, resized
from qvl_edit.profile import Profile
from qvl_edit.questions import FORTH, bucket_of, questions, sources_of, target_of
from qvl_edit.tasks import names_of

Pixels = NDArray[np.float64]  # (H, W, 3), 0..255


class Shown(NamedTuple):
    """What a row shows; nothing is opened yet.

    target  what is right; None: nobody knows
    """

    sources: tuple[Media, ...]
    target: Media | None
    opener: Opener


@dataclass(frozen=True)
class Wanted:
    """One picture.

    kind    split, or kind of edit
    file    in the evaluation's folder of pictures
    text    the instruction
    bucket  sizes as they are learned
    read    reads what the row shows
    record  what else the row says
    """

    kind: str
    id: str
    file: str
    text: str
    bucket: Bucket
    read: Callable[[], Shown]
    record: dict[str, Any] = field(default_factory=dict)

    def sources(self) -> list[Image.Image]:
        """In RGB, upright, as they are."""
        shown = self.read()
        return [shown.opener.open(one) for one in shown.sources]

    @cached_property
    def key(self) -> list[str]:
        """What is shown and said, by content."""
        sources, target, opener = self.read()
        shown = [*sources, *([target] if target else [])]
        return [self.file, self.text, *(media_key(one, opener).hex() for one in shown)]


@dataclass(frozen=True)
class Edited:
    """A picture that was drawn, for figures and checks."""

    wanted: Wanted
    path: Path

    @property
    def text(self) -> str:
        """The instruction."""
        return self.wanted.text

    @property
    def record(self) -> dict[str, Any]:
        """What else the row says."""
        return self.wanted.record

    def output(self) -> Image.Image:
        with Image.open(self.path) as opened:
            return opened.convert("RGB")

    def source(self) -> Image.Image | None:
        """The last source at the output's size; None if there is none, or it has another shape."""
        bucket = self.wanted.bucket
        if bucket.sources[-1:] != (bucket.target,):
            return None
        shown = self.wanted.read()
        return resized(shown.opener.open(shown.sources[-1]), bucket.target)

    def target(self) -> Image.Image | None:
        """What is right, at the output's size; None if nobody knows."""
        shown = self.wanted.read()
        return None if shown.target is None else resized(shown.opener.open(shown.target), self.wanted.bucket.target)


def pixels(picture: Image.Image) -> Pixels:
    """(H, W, 3) of an RGB picture."""
    return np.asarray(picture, np.float64)


def held_out(
    mixture: Mixture, name: str, profile: Profile, geometry: Geometry, most: int | None = None
) -> tuple[list[Wanted], list[dict[str, str]]]:
    """A list's samples, or a fixed random choice of `most`, each with its first instruction, at the sizes at which it
    is learned; and where those stand that cannot be used, and why. Raises BadInput if none can."""
    found: list[Wanted] = []
    bad: list[dict[str, str]] = []
    tasks = names_of(mixture)
    for number, item in enumerate(chosen(list(mixture.items()), most)):
        try:
            sample = mixture.sample(item)
            with placed(sample):
                text, bucket = _usable(sample, profile, geometry)
        except BadSample as error:
            place = error.place or mixture.place(item)
            bad.append({"list": name, "place": place, "reason": error.reason, "problem": error.problem})
            continue
        record = {"task": tasks[item.source], "place": sample.place}
        read = partial(_shown, mixture, item)
        found.append(Wanted(name, sample.id, f"{number:05d}.png", text, bucket, read, record))
    if not found:
        raise BadInput(f"{name}: no row can be used: {bad[0]['problem'] if bad else 'there is none'}.")
    return found, bad


def digest(wanted: Sequence[Wanted]) -> str:
    """What changes with what is asked, shown or right."""
    return hashlib.sha256(json.dumps([one.key for one in wanted]).encode()).hexdigest()


def by_size(wanted: Sequence[Wanted]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Sizes of outputs, and the places of the pictures that have them."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, one in enumerate(wanted):
        groups.setdefault(one.bucket.target, []).append(place)
    yield from groups.items()


def _usable(sample: Sample, profile: Profile, geometry: Geometry) -> tuple[str, Bucket]:
    """A sample's first instruction, and the sizes of its pictures, each of which is opened once. Raises BadSample."""
    questions(sample, profile, inverse=False)  # raises for more sources than the checkpoint takes, and for no text
    text = next(text for text in edit.texts(sample).values() if text.strip())
    for index in (*sources_of(sample), target_of(sample)):
        sample.opener.open(sample.media[index])  # what cannot be opened is left out before anything is drawn
    return text.strip(), bucket_of(sample, FORTH, geometry)


def _shown(mixture: Mixture, item: Item) -> Shown:
    sample = mixture.sample(item)
    sources = tuple(sample.media[index] for index in sources_of(sample))
    return Shown(sources, sample.media[target_of(sample)], sample.opener)
