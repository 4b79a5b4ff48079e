"""One measured sample, as evaluations write it down. No torch is imported here."""

from dataclasses import dataclass
from pathlib import Path

from qvl_core.predictions import read_as


@dataclass(frozen=True)
class Prediction:
    """One measured sample; a line of predictions.jsonl.

    reference      the conversation's last answer
    nats           bound on the negative log-likelihood of the answers and what fills their canvases: a mean over masks
    tokens         of the canvases, which these nats are of
    answer_tokens  of the answers, their ends included
    answer         what the model wrote; None: it was not asked
    correct        whether it equals a reference up to white space at the ends
    forwards       forward passes while the answer was not done
    written        tokens of the answer that was written, its end included
    chosen         of the sample's choices, the likeliest; None: it has none, or they were not measured
    picture        file below the folder of the evaluation, for the samples that the report shows
    """

    list: str
    id: str
    question: str
    reference: str
    nats: float
    tokens: int
    answer_tokens: int
    answer: str | None = None
    correct: bool = False
    forwards: int = 0
    written: int = 0
    chosen: str | None = None
    picture: str | None = None

    @property
    def chosen_right(self) -> bool:
        return self.chosen == self.reference.strip()


def read_predictions(folder: Path) -> list[Prediction]:
    """The predictions that an evaluation left in a folder; empty if there are none. Raises BadInput."""
    return read_as(Prediction, folder)
