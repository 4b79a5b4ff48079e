"""predictions.jsonl: what an evaluation found of each sample, one line each, whatever a method says of one."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qvl_core.errors import BadInput
from qvl_core.evaluation import write_lines
from qvl_core.run import read_records

FILE = "predictions.jsonl"


class Listed(Protocol):
    """What every prediction has, in a frozen dataclass."""

    @property
    def list(self) -> str: ...


P = TypeVar("P", bound=Listed)


def read_as(kind: type[P], folder: Path) -> "list[P]":
    """The predictions that an evaluation left in a folder; empty if there are none. Raises BadInput."""
    try:
        return [kind(**record) for record in read_records(folder / FILE)]
    except TypeError as error:
        raise BadInput(f"{folder / FILE}: is not what evaluate writes ({error}); evaluate again.") from None


def write_predictions(folder: Path, predictions: Iterable[Any]) -> None:
    """Write them; without any there is no file."""
    write_lines(folder / FILE, [asdict(prediction) for prediction in predictions])


def by_list(predictions: Iterable[P]) -> "dict[str, list[P]]":
    """The predictions of each list, in the order first seen."""
    lists: dict[str, list[P]] = {}
    for prediction in predictions:
        lists.setdefault(prediction.list, []).append(prediction)
    return lists
