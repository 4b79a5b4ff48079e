"""From an endless order of samples to the micro-batches of each step, the same for any number of processes and workers.

A step's global batch is a list of rows; a row is one sample (`batch.size`) or a packed row of samples (`batch.tokens`).
Rows are dealt to processes like cards (row i to process i mod world) and cut into micro-batches of `batch.micro` rows.
Where lengths decide (packed rows, length grouping), they decide within a window of about 4,096 samples, so that the
plan of a step is a pure function of (seed, window). Windows end with the epoch, so that it sees each of its samples;
with `batch.size` every step is full, so one step may hold the end of an epoch and the start of the next.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.recipe.blocks import Batch, Train
from qvl_core.training.parts import Micro, TensorBatch
from qvl_core.training.samples import LeftOut, Place, Samples
from qvl_core.training.seeds import mix

WINDOW = 4096

Row = tuple[int, ...]  # positions in the order of samples


@dataclass(frozen=True)
class Plan:
    """This process's micro-batches of one step: the rows of each, and its first row's slot in the global batch."""

    micros: tuple[tuple[int, tuple[Row, ...]], ...]
    witness: bool  # several processes: each forward has to use what the others use, or they would wait for one another
    places: Mapping[int, Place] = field(default_factory=dict)
    """of each sample here, by position, if it is to be finished"""


@dataclass
class SampleBatches:
    """Batches of samples for a loss over token sequences.

    `collate` turns encoded samples into tensors; `witness` is a sample that changes no gradient and keeps processes in
    step: it joins a micro-batch of several processes that would be empty or, `pictured`, would show no picture, so that
    its forward leaves the vision tower out.
    `finish` makes of a sample what is learned from it, one sample or several, once its place in the step is known, so
    that noise can be spread evenly over a step; it raises LeftOut as `samples` do.
    """

    samples: Samples
    batch: Batch
    seed: int
    collate: Callable[[Sequence[Any]], TensorBatch]
    witness: Encoded
    finish: Callable[[Encoded, Place], Sequence[Encoded]] | None = None
    pictured: bool = True

    def __post_init__(self) -> None:
        self._starts = [0]  # first step of each window planned so far
        self._windows: dict[int, list[list[Row]]] = {}
        if len(self.samples) == 0:
            raise BadInput("data.train: there are no samples to train on; check source, split and take.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_windows": {}, "_starts": [0]}  # workers build, they do not plan

    def plan(self, step: int, rank: int, world: int) -> Plan:
        rows = self.rows(step)
        mine = rows[rank::world]
        share = math.ceil(len(rows) / world)  # every process makes as many forwards as the one with most rows
        micro = self.batch.micro or (1 if self.batch.tokens else share)
        micros = tuple((rank + world * first, tuple(mine[first : first + micro])) for first in range(0, share, micro))
        return Plan(micros, world > 1, self.places(step, mine) if self.finish else {})

    def build(self, plan: Plan) -> list[Micro]:
        return [self._micro(slot, rows, plan) for slot, rows in plan.micros]

    def places(self, step: int, rows: Iterable[Row]) -> dict[int, Place]:
        """Places of the samples of some of a step's rows, by position."""
        order = [position for row in self.rows(step) for position in row]
        slots = {position: slot for slot, position in enumerate(order)}
        return {position: Place(step, slots[position], len(order)) for row in rows for position in row}

    def rows(self, step: int) -> list[Row]:
        """The global batch of a step."""
        if self.batch.size and (self.batch.packing or not self.batch.group_by_length):
            return _single(range(step * self.batch.size, (step + 1) * self.batch.size))
        window = self._window_of(step)
        return self._window(window)[step - self._starts[window]]

    def steps(self, epochs: float) -> int:
        """Optimizer steps in `epochs` passes over the samples; of a window begun, the steps in proportion."""
        end = max(1, round(epochs * len(self.samples)))
        if self.batch.size:
            return math.ceil(end / self.batch.size)
        steps, window = 0, 0
        while (span := self._span(window)).start < end:
            steps += math.ceil(len(self._window(window)) * min(1.0, (end - span.start) / len(span)))
            window += 1
        return steps

    def steps_of(self, train: Train) -> int:
        """Optimizer steps of a run: `train.steps` or `train.epochs`, whichever ends first."""
        ends = [train.steps] if train.steps is not None else []
        if train.epochs is not None:
            ends.append(self.steps(train.epochs))
        return min(ends)

    def _micro(self, slot: int, rows: Sequence[Row], plan: Plan) -> Micro:
        samples: list[Encoded] = []
        bad = []
        for position in (position for row in rows for position in row):
            try:
                sample = self.samples.encode(position)
                samples += [sample] if self.finish is None else self.finish(sample, plan.places[position])
            except LeftOut as error:
                bad.append(error.bad)
        names, tokens, count = tuple(s.id for s in samples), sum(map(len, samples)), sum(s.count for s in samples)
        lacking = not any(sample.images is not None or sample.videos is not None for sample in samples)
        if plan.witness and (lacking if self.pictured else not samples):
            samples.append(self.witness)
        return Micro(self.collate(samples) if samples else None, count, slot, names, tokens, tuple(bad))

    def _window_of(self, step: int) -> int:
        while self._starts[-1] <= step:
            self._starts.append(self._starts[-1] + len(self._window(len(self._starts) - 1)))
        return bisect_right(self._starts, step) - 1

    def _window(self, window: int) -> list[list[Row]]:
        """The steps of a window, each a list of rows; the newest two windows are kept."""
        if window not in self._windows:
            self._windows = {key: value for key, value in self._windows.items() if key == window - 1}
            positions = self._span(window)
            lengths = {position: self.samples.length(position) for position in positions}
            make = self._packed if self.batch.tokens else self._grouped
            self._windows[window] = make(lengths, random.Random(mix(self.seed, "window", window)))
        return self._windows[window]

    def _span(self, window: int) -> range:
        """Positions of a window: an epoch is cut into as few equal windows of about WINDOW samples as possible.

        With `batch.size` windows hold whole steps: an epoch's are those that begin in it.
        """
        unit, epoch = self.batch.size or 1, len(self.samples)
        per_epoch = math.ceil(epoch / WINDOW)
        number, index = divmod(window, per_epoch)
        first, end = (-(-n * epoch // unit) for n in (number, number + 1))
        start, stop = (first + i * (end - first) // per_epoch for i in (index, index + 1))
        return range(start * unit, stop * unit)

    def _packed(self, lengths: dict[int, int], rng: random.Random) -> list[list[Row]]:
        """Rows of at most max_length tokens, dealt evenly to as few steps as `tokens` allows."""
        assert self.batch.tokens
        rows = best_fit(lengths, self.batch.max_length)
        rng.shuffle(rows)  # best fit sorts by length
        steps = math.ceil(len(rows) / (self.batch.tokens // self.batch.max_length))
        return [rows[index::steps] for index in range(steps)]

    def _grouped(self, lengths: dict[int, int], rng: random.Random) -> list[list[Row]]:
        """Steps of samples of similar length, in random order."""
        assert self.batch.size
        order = sorted(lengths, key=lambda position: (lengths[position], position))
        steps = [_single(order[i : i + self.batch.size]) for i in range(0, len(order), self.batch.size)]
        rng.shuffle(steps)
        return steps


def _single(positions: Iterable[int]) -> list[Row]:
    """A row for each sample."""
    return [(position,) for position in positions]


def best_fit(lengths: dict[int, int], capacity: int) -> list[Row]:
    """Best-fit decreasing: each item, longest first, goes into the fullest row that has room.

    Items over `capacity` get a row of their own: encoding decides what becomes of them.
    """
    rows: list[list[int]] = []
    room: dict[int, list[int]] = {}  # free tokens -> rows with that much room
    free_sizes: list[int] = []  # the keys of room, sorted
    for position in sorted(lengths, key=lambda position: (-lengths[position], position)):
        length = lengths[position]
        at = bisect_right(free_sizes, length - 1)
        if at < len(free_sizes):
            free = free_sizes[at]
            row = room[free].pop()
            if not room[free]:
                del room[free], free_sizes[at]
        else:
            free, row = max(capacity, length), len(rows)
            rows.append([])
        rows[row].append(position)
        if left := free - length:
            if left not in room:
                free_sizes.insert(bisect_right(free_sizes, left), left)
            room.setdefault(left, []).append(row)
    return [tuple(row) for row in rows]
