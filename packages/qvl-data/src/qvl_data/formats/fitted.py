"""Writing with layout hints from a file, which anybody may have changed."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from ..sample import Sample
from .common import fitting

F = TypeVar("F")


def fitted(write: Callable[[F, Sample], Any]) -> Callable[[F, Sample], Any]:
    """The method `write` of a format, with BadSample (`layout`) for hints that do not fit the sample."""

    @wraps(write)
    def guarded(self: F, sample: Sample) -> Any:
        with fitting(sample):
            return write(self, sample)

    return guarded
