"""Which samples a step learns from: the number of sources, then a task and a sample for each slot.

    mixture = Mixture({"plates": sources_of_plates, "receipts": sources_of_receipts}, size=8, seed=0,
                      tasks={"plates": 0.5, "receipts": 1.2}, sources={0: 1, 1: 1, 2: 1, 3: 0})
    mixture.draw(7)         # Draw(task="plates", sample=12), ...: one for each slot of step 7

All samples of a step have the same number of sources. It is a function of (seed, step), a slot's task and sample of
(seed, step, slot): processes need not talk, and a resumed run goes on as if it had never ended. The samples of a task
with so many sources come in a shuffled order, and none again before all had their turn.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput
from qvl_core.recipe.names import close
from qvl_core.training.seeds import mix
from qvl_data.order import order

Numbers = NDArray[np.int64]


class Draw(NamedTuple):
    """What stands in a slot: a sample of a task, by its index there."""

    task: str
    sample: int


class Mixture:
    """An endless sequence of steps. Raises BadInput for weights that no sample answers to.

    found    number of sources of each sample of a task, (n,) by name
    size     slots of a step
    tasks    weights by name, a task without one is not trained; None: a task weighs what it has samples
    sources  weights by number of sources, a number without one is not trained; None: as the tasks have them
    """

    def __init__(
        self,
        found: Mapping[str, Numbers],
        size: int,
        seed: int,
        tasks: Mapping[str, float] | None = None,
        sources: Mapping[int, float] | None = None,
    ) -> None:
        self.size, self.seed = size, seed
        self.tasks = _known(found, tasks, sources)
        numbers = {int(number) for name in self.tasks for number in np.unique(found[name])}
        self.numbers = sorted(numbers if sources is None else (number for number in sources if sources[number] > 0))
        """Of sources, of which a step may be."""
        self._samples = [[np.flatnonzero(found[name] == number) for name in self.tasks] for number in self.numbers]
        held = np.array([[len(samples) for samples in row] for row in self._samples])  # (N numbers, T tasks)
        _check(held, self.numbers, self.tasks, sources)
        weights = np.array([len(found[name]) if tasks is None else tasks[name] for name in self.tasks], float)
        if sources is None:
            joint = weights * held / [len(found[name]) for name in self.tasks]
        else:
            rows = held if tasks is None else weights * (held > 0)
            joint = np.array([[sources[number]] for number in self.numbers]) * rows / rows.sum(1, keepdims=True)
        self.shares = joint / joint.sum()
        """(N, T): part of the slots that each number of sources of each task has."""
        self._ends = _ends(self.shares.sum(1))
        self._task_ends = [_ends(row) for row in self.shares]
        self._held = held
        self._seen = (0, np.zeros_like(held))  # a step, and what was drawn before it

    def __len__(self) -> int:
        """Samples that are drawn from."""
        return int(self._held.sum())

    def draw(self, step: int) -> list[Draw]:
        """The samples of a step, by slot."""
        number, tasks = self._drawn(step)
        before = self._before(step)[number].copy()
        drawn = []
        for task in tasks.tolist():
            samples = self._samples[number][task]
            key = mix(self.seed, "samples", self.tasks[task], self.numbers[number])
            drawn.append(Draw(self.tasks[task], int(samples[order(key, int(before[task]), len(samples))])))
            before[task] += 1
        return drawn

    def sources(self, step: int) -> int:
        """The number of sources of a step's samples."""
        return self.numbers[self._drawn(step)[0]]

    def _drawn(self, step: int) -> tuple[int, Numbers]:
        """Index of a step's number of sources, and the tasks of its slots (size,)."""
        rng = np.random.default_rng(mix(self.seed, "mixture", step))
        number = int(np.searchsorted(self._ends, rng.random(), side="right"))
        return number, np.searchsorted(self._task_ends[number], rng.random(self.size), side="right")

    def _before(self, step: int) -> Numbers:
        """(N, T): samples drawn of each pair before a step. Counted on from the step that was asked for last."""
        known, counts = self._seen if self._seen[0] <= step else (0, np.zeros_like(self._held))
        counts = counts.copy()
        for earlier in range(known, step):
            number, tasks = self._drawn(earlier)
            counts[number] += np.bincount(tasks, minlength=len(self.tasks))
        self._seen = step, counts
        return counts


def _known(
    found: Mapping[str, Numbers], tasks: Mapping[str, float] | None, sources: Mapping[int, float] | None
) -> list[str]:
    """The tasks to be trained, in an order of their own: those with a weight, else those that have what is trained."""
    for name in tasks or ():
        if name not in found:
            there = close(name, list(found)) or f"; there are {', '.join(found) or 'none'}."
            raise BadInput(f'mixture.tasks: there is no task "{name}"{there}')
    if not found:
        raise BadInput("data.train: there are no samples to train on; name a folder of tasks, or a data set.")
    if tasks is not None:
        return sorted(name for name in found if tasks.get(name, 0) > 0)
    trained = None if sources is None else [number for number, weight in sources.items() if weight > 0]
    return sorted(name for name in found if trained is None or np.isin(found[name], trained).any()) or sorted(found)


def _check(held: Numbers, numbers: list[int], tasks: list[str], sources: Mapping[int, float] | None) -> None:
    """Raise BadInput for a number of sources, or a task, that could never be drawn."""
    for number, row in zip(numbers, held, strict=True):
        if sources is not None and not row.any():
            raise BadInput(
                f"mixture.sources: {number} has weight {sources[number]:g}, but no task with a weight has a sample "
                f"of {number} sources; set {number}=0, or give a task with such samples a weight."
            )
    for name, column in zip(tasks, held.T, strict=True):
        if not column.any():
            raise BadInput(
                f"mixture.tasks: {name} has no sample of {' or '.join(map(str, numbers))} sources, which are all that "
                f"mixture.sources gives a weight; give it no weight in mixture.tasks, or its number one in "
                "mixture.sources."
            )


def _ends(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each share of [0, 1) ends; the last one that is not empty, at exactly 1."""
    ends = np.cumsum(shares)
    return np.asarray(ends / ends[-1])
