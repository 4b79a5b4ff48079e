"""One measured sample, as evaluations write it down. No torch is imported here."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from qvl_core.errors import BadInput
from qvl_core.evaluation import write_lines
from qvl_core.run import read_records

FILE = "predictions.jsonl"


@dataclass(frozen=True)
class Prediction:
    """One measured sample; a line of predictions.jsonl.

    reference  the conversation's last answer
    nats       bound on the answers' negative log-likelihood, the mean over masks
    tokens     that these nats are of
    answer     what the model wrote; None: it was not asked
    correct    whether it equals a reference up to white space at the ends
    forwards   forward passes while the answer was not done
    written    tokens of the answer, its end included
    chosen     of the sample's choices, the likeliest; None: it has none, or they were not measured
    picture    file below the folder of the evaluation, for the samples that the report shows
    """

    list: str
    id: str
    question: str
    reference: str
    nats: float
    tokens: int
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
    try:
        return [Prediction(**record) for record in read_records(folder / FILE)]
    except TypeError as error:
        raise BadInput(f"{folder / FILE}: is not what evaluate writes ({error}); evaluate again.") from None


def write_predictions(folder: Path, predictions: Iterable[Prediction]) -> None:
    write_lines(folder / FILE, [asdict(prediction) for prediction in predictions])


def by_list(predictions: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each list, in the order first seen."""
    lists: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        lists.setdefault(prediction.list, []).append(prediction)
    return lists
