"""From an order of samples to the micro-batches of each step."""

import pickle
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.recipe.blocks import Batch
from qvl_core.training import batches as module
from qvl_core.training.batches import SampleBatches, best_fit
from qvl_core.training.samples import Bad, LeftOut


@dataclass(frozen=True)
class Lengths:
    """Samples that have nothing but a length; those of length 0 cannot be used, odd ones have a picture."""

    of: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.of)

    def length(self, position: int) -> int:
        return self.of[position % len(self.of)]

    def encode(self, position: int) -> Encoded:
        length = self.length(position)
        if length == 0:
            raise LeftOut(Bad(f"s{position % len(self.of)}", "empty", "is empty"))
        return encoded(f"p{position}", length, picture=length % 2 == 1)


def encoded(name: str, length: int, picture: bool) -> Encoded:
    ids = np.ones(length, dtype=np.int64)
    pixels = np.zeros((4, 8), dtype=np.float32) if picture else None
    grid = np.array([[1, 2, 2]]) if picture else None
    return Encoded(name, ids, ids, np.zeros(length, dtype=np.int64), images=pixels, image_grid=grid)


WITNESS = replace(encoded("witness", 4, picture=True), labels=np.full(4, -100))


@dataclass(frozen=True)
class Collated:
    ids: tuple[str, ...]

    def to(self, device: Any, non_blocking: bool = False) -> "Collated":
        return self

    def pin_memory(self) -> "Collated":
        return self


def collate(samples: Sequence[Encoded]) -> Collated:
    return Collated(tuple(sample.id for sample in samples))


def planned(lengths: Sequence[int], seed: int = 0, **batch: Any) -> SampleBatches:
    return SampleBatches(Lengths(tuple(lengths)), Batch.model_validate(batch), seed, collate, WITNESS)


def lognormal(number: int, seed: int = 0) -> list[int]:
    """Lengths as chats have them: mean about 900 tokens, a long tail (facts: p95 about 1,800), cut at 8,192."""
    rng = random.Random(seed)
    return [min(8192, max(8, round(rng.lognormvariate(6.6, 0.65)))) for _ in range(number)]


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 16)


@st.composite
def cases(draw: st.DrawFn) -> SampleBatches:
    lengths = draw(st.lists(st.integers(0, 32), min_size=1, max_size=60))
    batch: dict[str, Any] = {"max_length": 32, "micro": draw(st.one_of(st.none(), st.integers(1, 4)))}
    if draw(st.booleans()):
        batch["tokens"] = 32 * draw(st.integers(1, 5)) + draw(st.integers(0, 31))
    else:
        batch |= {name: draw(st.booleans()) for name in ("packing", "group_by_length")}
        batch |= {"size": draw(st.integers(1, 9))}
    return planned(lengths, draw(st.integers(0, 3)), **batch)


@pytest.mark.usefixtures("small_window")
class TestEveryPlan:
    @settings(max_examples=60, deadline=None)
    @given(cases(), st.integers(1, 4))
    def test_is_the_same_for_any_world_and_any_start(self, made: SampleBatches, world: int) -> None:
        steps = made.steps(2)
        rows = [made.rows(step) for step in range(steps)]
        for step in reversed(range(steps)):  # as a run that resumes there: nothing was planned before
            resumed = replace(made)
            plans = [resumed.plan(step, rank, world) for rank in range(world)]
            found = {
                slot + world * index: row
                for plan in plans
                for slot, micro in plan.micros
                for index, row in enumerate(micro)
            }
            assert [found[slot] for slot in sorted(found)] == rows[step]
            assert sorted(found) == list(range(len(rows[step])))
            assert len({len(plan.micros) for plan in plans}) == 1  # no process waits for another one's forward
            assert all(plan.witness == (world > 1) for plan in plans)
            micro = made.batch.micro
            assert micro is None or all(len(rows) <= micro for plan in plans for _, rows in plan.micros)

    @settings(max_examples=60, deadline=None)
    @given(cases())
    def test_sees_each_sample_of_an_epoch_once(self, made: SampleBatches) -> None:
        epoch, steps = len(made.samples), made.steps(3)
        seen = [position for step in range(steps) for row in made.rows(step) for position in row]
        assert len(set(seen)) == len(seen)
        assert set(range(3 * epoch)) <= set(seen)
        if made.batch.size:
            assert all(len(made.rows(step)) == made.batch.size for step in range(steps))
        else:
            assert Counter(position % epoch for position in seen) == dict.fromkeys(range(epoch), 3)

    @settings(max_examples=60, deadline=None)
    @given(cases())
    def test_packed_rows_fit_and_stay_in_their_epoch(self, made: SampleBatches) -> None:
        if not made.batch.tokens:
            return
        epoch = len(made.samples)
        for step in range(made.steps(2)):
            rows = made.rows(step)
            assert 1 <= len(rows) <= made.batch.tokens // made.batch.max_length
            assert all(sum(map(made.samples.length, row)) <= made.batch.max_length for row in rows)
            assert len({position // epoch for row in rows for position in row}) == 1

    @settings(max_examples=50, deadline=None)
    @given(cases(), st.integers(1, 3))
    def test_builds_the_same_in_a_worker(self, made: SampleBatches, world: int) -> None:
        copy = pickle.loads(pickle.dumps(made))
        for step in range(min(3, made.steps(1))):
            plan = made.plan(step, world - 1, world)
            assert pickle.loads(pickle.dumps(plan)) == plan
            assert copy.build(plan) == made.build(plan)
            assert copy.plan(step, world - 1, world) == plan


def test_another_seed_is_another_order_of_steps() -> None:
    lengths = lognormal(200)
    first, again, other = (planned(lengths, seed, size=8, packing=False) for seed in (0, 0, 1))
    steps = range(first.steps(1))
    assert [first.rows(step) for step in steps] == [again.rows(step) for step in steps]
    assert [first.rows(step) for step in steps] != [other.rows(step) for step in steps]


def test_steps_of_epochs() -> None:
    assert planned([8] * 100, size=8).steps(1) == 13
    assert planned([8] * 100, size=8).steps(0.5) == 7
    assert planned([8] * 100, size=8).steps(0.001) == 1
    packed = planned([16] * 64, tokens=64, max_length=32)  # two samples a row, two rows a step
    assert [packed.steps(epochs) for epochs in (0.5, 1, 2.25)] == [8, 16, 36]


def test_length_grouping_shows_each_epoch_all_of_its_samples() -> None:
    """An epoch of more than one window, whose steps are mixed: none of them may come from the next epoch."""
    made = planned(lognormal(module.WINDOW + 904), size=8, packing=False)
    epoch, steps = len(made.samples), made.steps(1)
    for first in (0, steps):
        seen = [row[0] for step in range(first, first + steps) for row in made.rows(step)]
        assert sorted(position % epoch for position in seen) == list(range(epoch))


def test_windows_of_an_epoch_are_equally_long() -> None:
    made = planned([16] * (module.WINDOW + 4), tokens=64, max_length=32)
    sizes = Counter(len(made.rows(step)) for step in range(made.steps(1)))
    assert sizes[2] >= made.steps(1) - 2  # not a last window of four samples


# Packing


@given(st.lists(st.integers(0, 64), max_size=80), st.integers(1, 64))
def test_best_fit_packs_everything_once(lengths: list[int], capacity: int) -> None:
    rows = best_fit(dict(enumerate(lengths)), capacity)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    for row in rows:
        total = sum(lengths[position] for position in row)
        assert total <= capacity or [position for position in row if lengths[position]] == [row[0]]


@given(st.lists(st.lists(st.integers(1, 99), max_size=6, unique=True), min_size=1, max_size=60))
def test_best_fit_is_within_its_bound(cuts: list[list[int]]) -> None:
    """Full rows cut into pieces: best-fit decreasing needs at most 11/9 as many again, + 4 (Johnson 1974)."""
    edges = [[0, *sorted(row), 100] for row in cuts]
    lengths = [after - before for row in edges for before, after in pairwise(row)]
    assert len(cuts) <= len(best_fit(dict(enumerate(lengths)), 100)) <= 11 / 9 * len(cuts) + 4


def _by_hand(lengths: list[int]) -> int:
    """Rows of plain best-fit decreasing, found by looking at every row."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, used in enumerate(rows) if used + length <= 100]
        if fitting:
            rows[max(fitting, key=lambda index: rows[index])] += length
        else:
            rows.append(length)
    return len(rows)


@given(st.lists(st.integers(1, 100), max_size=60))
def test_best_fit_is_best_fit(lengths: list[int]) -> None:
    assert len(best_fit(dict(enumerate(lengths)), 100)) == _by_hand(lengths)


@pytest.mark.parametrize("capacity", [8192, 16384])
def test_rows_of_a_window_are_full(capacity: int) -> None:
    lengths = lognormal(module.WINDOW)
    rows = best_fit(dict(enumerate(lengths)), capacity)
    assert sum(lengths) / (len(rows) * capacity) >= 0.97


def test_packing_is_fast() -> None:
    """n log n: a window takes milliseconds, and sixteen times as many samples far less than 16 * 16 times as long."""

    def seconds(number: int) -> float:
        lengths = dict(enumerate(lognormal(number)))
        began = time.process_time()
        best_fit(lengths, 8192)
        return time.process_time() - began

    small, large = (min(seconds(number) for _ in range(3)) for number in (4096, 65536))
    assert small < 0.5
    assert large < 64 * small


def test_length_grouping_wastes_little_padding() -> None:
    made = planned(lognormal(4096), size=8, packing=False)

    def efficiency(steps: list[list[int]]) -> float:
        return sum(map(sum, steps)) / sum(max(step) * len(step) for step in steps)

    lengths = [[made.samples.length(row[0]) for row in made.rows(step)] for step in range(made.steps(1))]
    flat = [length for step in lengths for length in step]
    random.Random(0).shuffle(flat)
    assert efficiency(lengths) >= 0.9
    assert efficiency([flat[i : i + 8] for i in range(0, len(flat), 8)]) < 0.65  # what it would be without


def test_without_grouping_the_order_is_that_of_the_samples() -> None:
    made = planned(lognormal(20), size=8, packing=False, group_by_length=False)
    assert [[position for (position,) in made.rows(step)] for step in (0, 1)] == [[*range(8)], [*range(8, 16)]]


# Building


def test_micros_carry_counts_slots_names_and_tokens() -> None:
    (first, second) = planned([4, 6, 8, 10], size=4, micro=2).build(
        planned([4, 6, 8, 10], size=4, micro=2).plan(0, 0, 1)
    )
    assert (first.samples, first.slot, first.tokens, first.count) == (("p0", "p1"), 0, 10, 8)
    assert (second.samples, second.slot, second.tokens, second.count) == (("p2", "p3"), 2, 18, 16)


def test_left_out_samples_become_bad_and_the_rest_is_trained_on() -> None:
    made = planned([4, 0, 6, 0], size=2, micro=1)
    first, second = made.build(made.plan(0, 0, 1))
    assert first.samples == ("p0",)
    assert second.batch is None
    assert (second.count, second.tokens) == (0, 0)
    assert [bad.id for bad in second.bad] == ["s1"]


def test_a_witness_joins_only_where_several_processes_have_no_picture() -> None:
    made = planned([4, 5, 0], size=3, micro=1)
    alone = made.build(made.plan(0, 0, 1))
    assert [micro.batch.ids if micro.batch else None for micro in alone] == [("p0",), ("p1",), None]
    by_rank = [made.build(made.plan(0, rank, 2)) for rank in range(2)]
    ids = [[micro.batch.ids for micro in micros if micro.batch] for micros in by_rank]
    assert ids == [[("p0", "witness"), ("witness",)], [("p1",), ("witness",)]]
    assert by_rank[0][0].samples == ("p0",)
    assert [micro.count for micro in by_rank[1]] == [4, 0]
    assert [micro.tokens for micro in by_rank[1]] == [5, 0]


def test_no_samples_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"data\.train: there are no samples"):
        planned([], size=1)


class _Encoding(Lengths):
    @cached_property
    def seen(self) -> list[int]:
        return []

    def encode(self, position: int) -> Encoded:
        self.seen.append(position)
        return super().encode(position)


def test_planning_reads_no_sample() -> None:
    samples = _Encoding((4,) * 100)
    made = SampleBatches(samples, Batch(tokens=64, max_length=32), 0, collate, WITNESS)
    made.plan(0, 0, 1)
    assert samples.seen == []
