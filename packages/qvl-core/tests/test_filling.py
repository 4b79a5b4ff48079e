"""A pass that fills a store: it goes on where it was, and counts what cannot be used, whoever finds it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.training.filling import Walk, fill
from qvl_core.training.left_out import left_out, noted
from qvl_core.training.samples import Bad
from qvl_core.training.store import Store
from qvl_core.training.world import World

ALONE = World(0, 1, torch.device("cpu"), "single")


@dataclass(frozen=True)
class Numbers:
    """Samples that are numbers, two in a window; some cannot be used."""

    count: int
    bad: frozenset[int] = frozenset()
    size = 2

    def names(self) -> list[str]:
        return [f"{number:03d}" for number in range(self.count // self.size)]

    def numbers(self, window: int) -> range:
        return range(window * self.size, (window + 1) * self.size)

    def gathered(
        self, numbers: Iterable[int], take: Callable[[Any, Any], Iterable[Any]]
    ) -> tuple[list[Any], tuple[Bad, ...]]:
        bad = tuple(
            Bad(f"rows:{number}", "broken", f"rows:{number}: is broken.") for number in numbers if number in self.bad
        )
        return [one for number in numbers if number not in self.bad for one in take(number, None)], bad


@dataclass(frozen=True)
class Batch:
    numbers: tuple[int, ...]

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        return self

    def pin_memory(self) -> "Batch":
        return self


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def entries(batch: Batch, held: Mapping[bytes, Tensor]) -> dict[bytes, Tensor]:
    return {key(number): torch.full((1, 2), float(number)) for number in batch.numbers}


def walk(samples: Numbers) -> Walk:
    return Walk(samples, 1, lambda number, _: [number], lambda found: Batch(tuple(found)))


def begun(folder: Path) -> Store:
    return Store.begin(folder, {}, "choose another")


def test_what_is_lacking_is_written_with_what_was_left_out(tmp_path: Path) -> None:
    samples, store = Numbers(8, frozenset({2, 3, 7})), begun(tmp_path / "store")
    for missing in ([0, 2], [1, 3]):
        fill(store, walk(samples), missing, entries, 3, ALONE, 0)
    assert store.shards() == samples.names()
    assert [number for number in range(8) if key(number) in store.again()] == [0, 1, 4, 5, 6]
    assert [*left_out(store, samples.names())] == ["rows:2", "rows:3", "rows:7"]


def test_what_other_processes_cannot_use_counts_as_soon_as_it_is_known(tmp_path: Path) -> None:
    """This one writes windows 0, 2 and 4; meanwhile another one finds two bad samples in window 1."""
    samples, store = Numbers(10, frozenset({2, 3, 9})), begun(tmp_path / "store")
    seen: list[int] = []

    def other(batch: Batch, held: Mapping[bytes, Tensor]) -> dict[bytes, Tensor]:
        seen.extend(batch.numbers)
        if batch.numbers == (1,):
            fill(store, walk(samples), [1], entries, 2, ALONE, 0)
        return entries(batch, held)

    with pytest.raises(BadInput, match=r"rows:9: is broken; data.max_bad allows 2 bad samples and this is one more"):
        fill(store, walk(samples), [0, 2, 4], other, 2, ALONE, 0)
    assert (seen, store.shards()) == ([0, 1, 4, 5, 8], ["000", "001", "002"])


@pytest.mark.parametrize("allowed", [0, 1])
def test_bad_samples_of_an_earlier_run_count(tmp_path: Path, allowed: int) -> None:
    store = begun(tmp_path / "store")
    store.write("000", {}, noted({"rows:0": {"id": "rows:0", "reason": "broken", "message": "rows:0: is broken."}}))
    written: Sequence[str] = ["000", "001"]
    if allowed:
        fill(store, walk(Numbers(4)), [1], entries, allowed, ALONE, 0)
    else:
        with pytest.raises(BadInput, match="allows 0 bad samples"):
            fill(store, walk(Numbers(4)), [1], entries, allowed, ALONE, 0)
        written = ["000"]
    assert store.shards() == [*written]
