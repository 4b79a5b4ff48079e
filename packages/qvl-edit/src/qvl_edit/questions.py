"""Which texts about which pictures of a sample have to be embedded, so that it can be learned from.

    for question in questions(sample, profile):         # Question(pictures=(0,), texts=("make it red", "把它变红", ""))
        ...

Sources are seen with the instructions, and for the way back the target with the inverse ones; each of them with the
empty text as well, for steps whose text is left out.
"""

from collections.abc import Iterable
from typing import NamedTuple

from qvl_data.errors import BadSample
from qvl_data.formats import edit
from qvl_data.formats.common import drawing
from qvl_data.sample import Sample
from qvl_edit.profile import Profile


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
        raise says_nothing(sample)
    return [Question(pictures, tuple(dict.fromkeys(texts))) for pictures, texts in found]


def says_nothing(sample: Sample) -> BadSample:
    """The error for a sample without an instruction."""
    problem = "no instruction that says something; write one, or remove the row"
    return BadSample("empty_question", problem, sample.place, sample.id)


def sources_of(sample: Sample) -> tuple[int, ...]:
    """Which of a sample's media are its sources."""
    return () if sample.edit is None else sample.edit.sources


def target_of(sample: Sample) -> int:
    """Which of a sample's media is the picture that is learned. Raises BadSample for a sample that draws none."""
    return drawing("edit", sample)[1][-1] if sample.edit is None else sample.edit.target


def _said(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text.strip())
