"""What the loop asks of data: an endless order of encoded samples, and a word about those that cannot be used.

Imports no torch, so that data packages can speak this language without it.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded


@dataclass(frozen=True)
class Bad:
    """A sample that was left out, and why."""

    id: str
    reason: str  # code to count by
    message: str
    tolerated: bool = False  # left out because the recipe says so (too_long: drop): not counted against max_bad


class LeftOut(BadInput):
    """This sample cannot be used; `bad` says why. The run counts it and goes on, up to data.max_bad."""

    def __init__(self, bad: Bad) -> None:
        super().__init__(bad)  # the argument, so that the error survives pickling
        self.bad = bad

    def __str__(self) -> str:
        return self.bad.message


class Place(NamedTuple):
    """Where a sample stands in training, however the step is dealt: what is random about it is a function of this."""

    step: int
    slot: int  # 0, 1, ... among the samples of the step
    of: int  # samples of the step


class Samples(Protocol):
    """An endless, seeded order of samples; position p is sample p of the run. Pickled to workers."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        ...

    def length(self, position: int) -> int:
        """Tokens of a sample, cheaply (no pictures decoded); 0 if it cannot be used."""
        ...

    def encode(self, position: int) -> Encoded:
        """Raises LeftOut if it cannot be used."""
        ...
