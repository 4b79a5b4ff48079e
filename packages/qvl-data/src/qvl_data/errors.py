"""Errors about one sample. Each carries a reason code, so that callers can count and list what they leave out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from qvl_core.errors import BadInput

if TYPE_CHECKING:
    from .sample import Sample


class BadSample(BadInput):
    """One sample cannot be used.

    reason     code to count by (`image_truncated`, `media_count`, `too_long`, ...)
    problem    one sentence: what is wrong and how to fix it
    place      where it stands (`data.jsonl:1204`, or a file name); empty while unknown
    sample_id  id of the sample; empty while unknown
    """

    def __init__(self, reason: str, problem: str, place: str = "", sample_id: str = "") -> None:
        super().__init__(reason, problem, place, sample_id)  # all arguments, so that the error survives pickling
        self.reason, self.problem, self.place, self.sample_id = reason, problem, place, sample_id

    def __str__(self) -> str:
        sentence = self.problem if self.problem.endswith((".", "?")) else f"{self.problem}."
        return f"{self.place}: {sentence}" if self.place else sentence

    def at(self, place: str, sample_id: str) -> Self:
        """The same error with its sample named: the place goes in front of the file that is already named."""
        if self.sample_id:
            return self
        where = ": ".join(part for part in (place, self.place) if part)
        return type(self)(self.reason, self.problem, where, sample_id)


class TooLong(BadSample):
    """A sample is longer than the limit; under `too_long: drop` the caller leaves it out and counts it."""


@contextmanager
def placed(sample: "Sample") -> Iterator[None]:
    """Name the sample in every BadSample that passes through."""
    try:
        yield
    except BadSample as error:
        raise error.at(sample.place or sample.meta.locator or "", sample.id) from None
