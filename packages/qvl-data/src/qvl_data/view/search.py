"""Finding the next sample that fits, a piece at a time: a large data set is searched while the page stays alive."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..dataset import Dataset
from ..errors import BadSample
from ..sample import Sample
from .marks import Marks

_SECONDS = 0.5  # of one piece


@dataclass(frozen=True)
class Filter:
    """What a sample must be.

    text   its id, texts and labels hold these words, whatever their case
    mark   `accept`, `reject`, `comment`, `open` (neither accepted nor rejected)
    reason it cannot be used for this reason (a code of `errors.REASONS`), or for `any`
    """

    text: str = ""
    mark: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Found:
    """The sample that was found, or None; the search is over unless `more`, and goes on at `at`."""

    index: int | None
    at: int
    more: bool


def find(data: Dataset, marks: Marks, wanted: Filter, start: int, step: int) -> Found:
    """The first sample from `start` on (step 1) or back (step -1) that fits; gives up after half a second."""
    until = time.monotonic() + _SECONDS
    at = start
    while 0 <= at < len(data):
        if fits(data, marks, wanted, at):
            return Found(at, at, False)
        at += step
        if time.monotonic() > until:
            return Found(None, at, 0 <= at < len(data))
    return Found(None, at, False)


def fits(data: Dataset, marks: Marks, wanted: Filter, index: int) -> bool:
    """Whether sample `index` is what is wanted."""
    return (
        _marked(marks, wanted.mark, index)
        and (not wanted.reason or _broken(data, wanted.reason, index))
        and (not wanted.text or _says(data, wanted.text, index))
    )


def _marked(marks: Marks, wanted: str, index: int) -> bool:
    tests: dict[str, Callable[[], bool]] = {
        "": lambda: True,
        "open": lambda: not marks[index].mark,
        "comment": lambda: bool(marks[index].comment),
    }
    return tests.get(wanted, lambda: marks[index].mark == wanted)()


def _broken(data: Dataset, reason: str, index: int) -> bool:
    """Whether the sample, or the header of one of its pictures, cannot be read for this reason."""
    try:
        sample = data[index]
        for media in sample.media:
            if media.kind == "image":
                sample.opener.size(media)
    except BadSample as error:
        return reason in ("any", error.reason)
    return False


def _says(data: Dataset, words: str, index: int) -> bool:
    try:
        said = texts(data[index])
    except BadSample as error:
        said = str(error)
    said = said.casefold()
    return all(word in said for word in words.casefold().split())


def texts(sample: Sample) -> str:
    """All that can be searched for."""
    edit = sample.edit
    said = [sample.id, *(message.text for message in sample.messages)]
    said += [*edit.instruction.values(), *(edit.inverse or {}).values()] if edit is not None else []
    said += [region.label or "" for region in sample.regions]
    return "\n".join(said)
