"""The parts of a data set."""

from typing import Literal

Split = Literal["train", "validation", "test"]
