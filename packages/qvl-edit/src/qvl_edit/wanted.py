"""Pictures that an evaluation draws: of which instruction, at which size, and what is known of the right one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.drawing.prompts import Asked
from qvl_data.errors import BadSample, placed
from qvl_data.formats import edit
from qvl_data.hashing import media_key
from qvl_data.order import chosen
from qvl_data.sample import Media, Sample
from qvl_data.sources import Mixture
from qvl_edit.cut import Bucket
from qvl_edit.geometry import Geometry, resized
from qvl_edit.profile import Profile
from qvl_edit.questions import FORTH, bucket_of, questions, sources_of, target_of
from qvl_edit.tasks import names_of

Pixels = NDArray[np.float64]  # (H, W, 3), 0..255


@dataclass(frozen=True)
class Wanted:
    """One picture.

    kind    split, or kind of edit
    file    in the evaluation's folder of pictures
    bucket  sizes as they are learned
    target  what is right; None: nobody knows
    record  what else the row says
    """

    kind: str
    id: str
    file: str
    asked: Asked
    bucket: Bucket
    target: Media | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def sources(self) -> list[Image.Image]:
        """In RGB, upright, as they are."""
        return self.asked.opened()

    @property
    def key(self) -> list[str]:
        """What is shown and said, by content."""
        shown = [*self.asked.pictures, *([self.target] if self.target else [])]
        return [self.file, self.asked.text, *(media_key(one, self.asked.opener).hex() for one in shown)]


@dataclass(frozen=True)
class Edited:
    """A picture that was drawn, for figures and checks."""

    wanted: Wanted
    path: Path

    @property
    def text(self) -> str:
        """The instruction."""
        return self.wanted.asked.text

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
        return resized(self.wanted.asked.opener.open(self.wanted.asked.pictures[-1]), bucket.target)

    def target(self) -> Image.Image | None:
        """What is right, at the output's size; None if nobody knows."""
        if self.wanted.target is None:
            return None
        return resized(self.wanted.asked.opener.open(self.wanted.target), self.wanted.bucket.target)


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
                found.append(_wanted(sample, name, f"{number:05d}", tasks[item.source], profile, geometry))
        except BadSample as error:
            place = error.place or mixture.place(item)
            bad.append({"list": name, "place": place, "reason": error.reason, "problem": error.problem})
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


def _wanted(sample: Sample, name: str, number: str, task: str, profile: Profile, geometry: Geometry) -> Wanted:
    questions(sample, profile, inverse=False)  # raises for more sources than the checkpoint takes, and for no text
    text = next(text for text in edit.texts(sample).values() if text.strip())
    shown = tuple(sample.media[at] for at in sources_of(sample))
    target = sample.media[target_of(sample)]
    for one in (*shown, target):
        sample.opener.open(one)  # what cannot be opened is left out before anything is drawn
    asked = Asked(number, text.strip(), shown, opener=sample.opener)
    bucket = bucket_of(sample, FORTH, geometry)
    return Wanted(name, sample.id, f"{number}.png", asked, bucket, target, {"task": task, "place": sample.place})
