"""The loop of evaluations: shares in the order of the list, what cannot be used, what is left behind."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from qvl_core.run import RunFolder, read_records
from qvl_data.errors import BadSample
from qvl_data.example.digits import digits_dataset
from qvl_data.measuring import Judged, measure
from qvl_data.sources import Item, Mixture
from qvl_data.writers import write

BROKEN = 3  # place of the sample that cannot be used
WORLD = SimpleNamespace(rank=0, size=1, gather=lambda value: [value])


@dataclass(frozen=True)
class Said:
    list: str
    place: int
    picture: str | None = None


@dataclass
class Places:
    """Predicts each sample's place; shows the pictures of even ones."""

    batches: list[list[int]] = field(default_factory=list)

    def open(self, mixture: Mixture, item: Item, place: int) -> int:
        mixture.sample(item)
        if place == BROKEN:
            raise BadSample("too_long", "is too long")
        return place

    def predict(self, name: str, opened: Sequence[int]) -> list[Said]:
        self.batches.append(list(opened))
        return [Said(name, place) for place in opened]

    def judge(self, name: str, predictions: Sequence[Said], places: Sequence[int]) -> Judged[Said]:
        assert [p.place for p in predictions] == list(places)
        return Judged({f"{name}_sum": float(sum(places))}, predictions, {place for place in places if place % 2 == 0})


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mixture]:
    file = tmp_path_factory.mktemp("data") / "digits.parquet"
    write(list(digits_dataset("digit", "test", 0))[:7], file)
    return {name: Mixture(str(file), name) for name in ("validation", "test")}


def measured(
    lists: dict[str, Mixture],
    out: Path,
    final: bool,
    world: Any = WORLD,
    samples: int | None = None,
    in_step: bool = False,
) -> Any:
    out.mkdir(exist_ok=True)
    method = Places()
    figures = measure(method, lists, world, final, RunFolder(out), samples=samples, held=2, in_step=in_step)
    return figures, method.batches


def test_before_the_end_validation_alone_is_looked_at(lists: dict[str, Mixture], tmp_path: Path) -> None:
    figures, batches = measured(lists, tmp_path, final=False)
    assert figures == {"validation_sum": 0 + 1 + 2 + 4 + 5 + 6, "validation_left_out": 1.0}
    assert batches == [[0, 1], [2], [4, 5], [6]]
    assert not list(tmp_path.iterdir())
    assert measured(lists, tmp_path, final=False, samples=2)[1] == [[0, 1]]


def test_at_the_end_predictions_pictures_and_what_was_left_out_are_there(
    lists: dict[str, Mixture], tmp_path: Path
) -> None:
    figures, _ = measured(lists, tmp_path, final=True)
    assert list(figures) == ["validation_sum", "validation_left_out", "test_sum", "test_left_out"]
    records = read_records(tmp_path / "predictions.jsonl")
    assert [record["place"] for record in records] == [0, 1, 2, 4, 5, 6] * 2
    for record in records:
        assert (record["picture"] is not None) == (record["place"] % 2 == 0)
        assert record["picture"] is None or (tmp_path / record["picture"]).is_file()
    left_out = read_records(tmp_path / "left_out.jsonl")
    assert [entry["list"] for entry in left_out] == ["validation", "test"]
    assert {entry["reason"] for entry in left_out} == {"too_long"}


class Threads:
    """Processes as threads, which wait for one another where processes would."""

    def __init__(self, size: int) -> None:
        self.size, self._barrier, self._values = size, Barrier(size, timeout=60), [None] * size

    def of(self, rank: int) -> Any:
        return SimpleNamespace(rank=rank, size=self.size, gather=lambda value: self._gathered(rank, value))

    def _gathered(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values


@pytest.mark.parametrize("size", [2, 3, 5, 9])
def test_in_step_all_processes_predict_equally_many(size: int, lists: dict[str, Mixture], tmp_path: Path) -> None:
    """Seven samples, of which one cannot be used; with nine processes some have none."""
    threads = Threads(size)
    with ThreadPoolExecutor(size) as pool:
        work = [
            pool.submit(measured, lists, tmp_path / str(rank), True, threads.of(rank), None, True)
            for rank in range(size)
        ]
        found = [one.result() for one in work]
    alone, _ = measured(lists, tmp_path / "alone", True)
    assert all(figures == alone for figures, _ in found)
    assert len({tuple(map(len, batches)) for _, batches in found}) == 1


def test_the_shares_of_processes_come_together_in_the_order_of_the_list(
    lists: dict[str, Mixture], tmp_path: Path
) -> None:
    test, shares = {"test": lists["test"]}, []

    def world(rank: int) -> Any:
        return SimpleNamespace(rank=rank, size=2, gather=lambda share: shares.append(share) or list(shares))

    measured(test, tmp_path / "1", True, world(1))
    figures, batches = measured(test, tmp_path / "0", True, world(0))
    assert batches == [[0, 2], [4, 6]]
    assert figures == {"test_sum": 0 + 1 + 2 + 4 + 5 + 6, "test_left_out": 1.0}
    assert [record["place"] for record in read_records(tmp_path / "0" / "predictions.jsonl")] == [0, 1, 2, 4, 5, 6]
    assert not list((tmp_path / "1").iterdir())
