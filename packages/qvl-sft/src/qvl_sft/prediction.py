"""One answered question, as evaluations write it down and metrics read it. No torch is imported here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl_core.predictions import read_as

_THOUGHT, _OPENS = "</think>", "<think>"


@dataclass(frozen=True)
class Prediction:
    """One answered question; a line of predictions.jsonl.

    reference   the conversation's last answer
    answer      what the model wrote, its thinking included
    correct     whether it equals a reference up to white space at the ends
    picture     file below the folder of the evaluation, for the samples that the report shows
    references  further answers that are as good: the field `references` of the data
    fields      what the sample's meta and unknown fields hold in single values; groups are made of them
    loss        nats over the labels of the sample
    scores      by metric; None where the metric says nothing about this sample
    """

    list: str
    id: str
    question: str
    reference: str
    answer: str
    correct: bool
    picture: str | None = None
    references: Sequence[str] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    loss: float = 0.0
    labels: int = 0
    scores: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """What is judged: the answer without the thinking before it."""
        return spoken(self.answer)

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every reference, without thinking, each once."""
        return tuple(dict.fromkeys(spoken(text) for text in (self.reference, *self.references)))


def spoken(text: str) -> str:
    """A text without the thinking before it, and white space at its ends; nothing if the thinking never ended."""
    _, ended, said = text.rpartition(_THOUGHT)
    return said.strip() if ended or _OPENS not in text else ""


def read_predictions(folder: Path) -> list[Prediction]:
    """The predictions that an evaluation left in a folder; empty if there are none. Raises BadInput."""
    return read_as(Prediction, folder)
