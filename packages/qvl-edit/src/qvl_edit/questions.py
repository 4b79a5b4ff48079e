"""Which texts about which pictures of a sample have to be embedded, so that it can be learned from.

    for question in questions(sample, profile):         # Question(pictures=(0,), texts=("make it red", "把它变红", ""))
        ...

Sources are seen with the instructions, and for the way back the target with the inverse ones; each of them with the
empty text as well, for steps whose text is left out.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from qvl_data.errors import BadSample, placed
from qvl_data.formats import edit
from qvl_data.formats.common import drawing
from qvl_data.sample import Sample
from qvl_edit.cut import Bucket
from qvl_edit.geometry import Geometry
from qvl_edit.profile import Profile
from qvl_edit.texts import Text, directed, learnable

FORTH = Text("")  # any instruction


class Question(NamedTuple):
    """Texts about the same pictures, which are indices into a sample's media."""

    pictures: tuple[int, ...]
    texts: tuple[str, ...]


def questions(sample: Sample, profile: Profile, inverse: bool = True, also: tuple[str, ...] = ("",)) -> list[Question]:
    """What a sample asks, each text once.

    inverse  the way back, too, where there is a text for it and one source
    also     texts that are asked beside its own

    Raises BadSample for a sample without an instruction, and for more sources than the checkpoint takes.
    """
    sources = sources_of(sample)
    if len(sources) > profile.pictures:
        problem = f"{len(sources)} source pictures, and {profile.name} takes at most {profile.pictures}; leave some out"
        raise BadSample("media_count", problem, sample.place, sample.id)
    asked = [(sources, edit.texts(sample).values())]
    if sample.edit is not None and inverse and len(sources) == 1:
        asked.append(((sample.edit.target,), (sample.edit.inverse or {}).values()))
    found = [Question(pictures, said + also) for pictures, texts in asked if (said := _said(texts))]
    if not found:
        raise _says_nothing(sample)
    return [Question(pictures, tuple(dict.fromkeys(texts))) for pictures, texts in found]


@dataclass(frozen=True)
class Asking:
    """What a recipe asks of a sample.

    inverse   the way back as well
    sources   weights of numbers of sources; what has none is not learned from
    negative  what guidance leads away from: asked in lists other than the first
    """

    inverse: bool = True
    sources: dict[int, float] | None = None
    negative: str = ""

    @property
    def said(self) -> str:
        """The same as text."""
        return json.dumps([self.inverse, sorted((self.sources or {}).items()), self.negative])

    def trains(self, sources: int) -> bool:
        """Whether samples of so many sources are learned from."""
        return self.sources is None or bool(self.sources.get(sources))

    def of(self, sample: Sample, profile: Profile, first: bool) -> list[Question]:
        """The questions of a sample of the first list, which is learned from, or of another, which is measured whole:
        none for one that is not learned from. Raises BadSample."""
        if first and not self.trains(len(sources_of(sample))):
            return []
        return questions(sample, profile, self.inverse, ("",) if first else ("", self.negative))


def texts_of(sample: Sample, inverse: bool = True) -> tuple[Text, ...]:
    """The texts that a sample can be learned from. Raises BadSample if there are none."""
    back = sample.edit.inverse if sample.edit is not None and inverse else None
    found = learnable(edit.texts(sample), back or {}, len(sources_of(sample)))
    if not found:
        raise _says_nothing(sample)
    return found


def bucket_of(sample: Sample, text: Text, geometry: Geometry) -> Bucket:
    """The sizes of a sample's pictures as a text learns them; reads headers only. Raises BadSample."""
    target, sources = directed(text, target_of(sample), sources_of(sample))
    with placed(sample):
        height_width = [sample.opener.size(sample.media[index])[::-1] for index in (target, *sources)]
        return geometry.fit(height_width[0], height_width[1:])


def buckets_of(sample: Sample, inverse: bool, geometry: Geometry) -> list[Bucket]:
    """The sizes at which each of a sample's texts learns its pictures, an instruction's first. Raises BadSample."""
    return [bucket_of(sample, text, geometry) for text in (FORTH, *texts_of(sample, inverse))]


def _says_nothing(sample: Sample) -> BadSample:
    problem = "no instruction that says something; write one, or remove the row"
    return BadSample("no_instruction", problem, sample.place, sample.id)


def sources_of(sample: Sample) -> tuple[int, ...]:
    """Which of a sample's media are its sources."""
    return () if sample.edit is None else sample.edit.sources


def target_of(sample: Sample) -> int:
    """Which of a sample's media is the picture that is learned. Raises BadSample for a sample that draws none."""
    return drawing("edit", sample)[1][-1] if sample.edit is None else sample.edit.target


def _said(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text.strip())
