"""Held-out samples measured by any method: lists, the shares of processes, what cannot be used, what is left behind.

A method says how a sample is opened, what it predicts of some and what that amounts to (`Method`); `measure` does the
rest. No torch is imported here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from qvl_core.evaluation import LEFT_OUT, write_lines
from qvl_core.predictions import write_predictions

from .errors import BadSample
from .order import chosen
from .progress import track
from .shown import keep_picture

if TYPE_CHECKING:
    from qvl_core.run import RunFolder
    from qvl_core.training.world import World

    from .sources import Item, Mixture

O = TypeVar("O")  # noqa: E741 (a sample that was opened)
P = TypeVar("P", bound=Any)  # a prediction: a frozen dataclass with a `picture`


@dataclass(frozen=True)
class Judged(Generic[P]):
    """What the predictions of a list amount to.

    figures      flat, the same on every process
    predictions  as they are to be written down, all of them or none
    pictured     places in the list of the samples whose pictures are kept for the report
    """

    figures: Mapping[str, float]
    predictions: Sequence[P] = ()
    pictured: AbstractSet[int] = frozenset()


class Method(Protocol[O, P]):
    """What is measured."""

    def open(self, mixture: "Mixture", item: "Item", place: int) -> O:
        """The sample that stands at a place of its list. Raises BadSample if it cannot be used."""
        ...

    def predict(self, name: str, opened: Sequence[O]) -> Sequence[P]:
        """A prediction of each sample of the list `name`."""
        ...

    def judge(self, name: str, predictions: Sequence[P], places: Sequence[int]) -> Judged[P]:
        """What all predictions of the list amount to; called on every process."""
        ...


GOLDEN = (5**0.5 - 1) / 2


def evenly(place: int) -> float:
    """A number of [0, 1) for a place: a multiple of the golden ratio, without its whole part; any first ones lie
    evenly."""
    return (place + 0.5) * GOLDEN % 1


@dataclass(frozen=True)
class HeldOut(Generic[O]):
    """Lists of held-out samples, of which the loss is measured: validation_loss and, at the end, test_loss.

    open     what is learned of the sample at a place of its list, the same each time; raises BadSample
    losses   of some samples, of a model on a device
    held     samples that are opened together
    samples  of each list, before the end
    in_step  `losses` calls the model once for each sample, and every process as often as any other
    """

    lists: "Mapping[str, Mixture]"
    open: "Callable[[Mixture, Item, int], O]"
    losses: Callable[[Any, Any, Sequence[O]], Sequence[float]]
    held: int
    samples: int | None = None
    in_step: bool = False

    def measure(self, model: Any, world: "World", final: bool, run: "RunFolder") -> dict[str, float]:
        """Figures by name, the same on every process. Samples that cannot be used are left out and counted."""
        method = _Loss(self, model, world.device)
        samples = None if final else self.samples
        return measure(method, self.lists, world, final, run, samples=samples, held=self.held, in_step=self.in_step)


@dataclass
class _Loss(Generic[O]):
    """A model whose loss is measured: `Method`."""

    of: HeldOut[O]
    model: Any
    device: Any

    def open(self, mixture: "Mixture", item: "Item", place: int) -> O:
        return self.of.open(mixture, item, place)

    def predict(self, name: str, opened: Sequence[O]) -> Sequence[float]:
        return self.of.losses(self.model, self.device, opened)

    def judge(self, name: str, predictions: Sequence[float], places: Sequence[int]) -> Judged[float]:
        return Judged({f"{name}_loss": float(np.mean(predictions))} if predictions else {})


@dataclass
class _Share(Generic[P]):
    """What one process found out about its part of a list: by place in the list, and what it could not use."""

    found: list[tuple[int, P]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)


def measure(
    method: Method[O, P],
    lists: "Mapping[str, Mixture]",
    world: "World",
    final: bool,
    run: "RunFolder",
    *,
    samples: int | None,
    held: int,
    live: bool = False,
    in_step: bool = False,
) -> dict[str, float]:
    """Figures such as validation_loss and test_exact_match, the same on every process.

    samples  of each list: a fixed random choice; None: all
    held     samples that are held, and predicted, together
    live     show on the terminal how far it has come
    in_step  every process predicts as many samples as the one with the most: what is too many is not used

    Before the end (`final`) only the validation list is looked at. At the end the run folder gets predictions.jsonl,
    and in answers/ the pictures that the method wants. Samples that cannot be used are left out, counted
    (validation_left_out) and, at the end, listed in left_out.jsonl.
    """
    figures: dict[str, float] = {}
    everything: list[P] = []
    left_out: list[dict[str, str]] = []
    for name, mixture in lists.items():
        if not final and name != "validation":
            continue
        items = chosen(list(mixture.items()), samples)
        own = range(world.rank, len(items), world.size)
        parts = [own[start : start + held] for start in range(0, ceil(len(items) / world.size), held)]
        watched = track(parts, f"{name}, {held} samples at a time", len(parts)) if live else parts
        even = partial(_evened, world) if in_step else list
        shares = world.gather(_share(method, name, mixture, items, watched, even))
        found = {place: prediction for share in shares for place, prediction in share.found}
        places = sorted(found)  # the order of the items, whoever measured them
        judged = method.judge(name, [found[place] for place in places], places)
        figures |= judged.figures
        if bad := [entry for share in shares for entry in share.left_out]:
            figures[f"{name}_left_out"] = float(len(bad))
            left_out += bad
        if final and world.rank == 0 and judged.predictions:
            everything += [
                replace(p, picture=keep_picture(mixture, items[place], run.path, name))
                if place in judged.pictured
                else p
                for place, p in zip(places, judged.predictions, strict=True)
            ]
    if final and world.rank == 0:
        write_predictions(run.path, everything)
        write_lines(run.path / LEFT_OUT, left_out)
    return figures


def _share(
    method: Method[O, P],
    name: str,
    mixture: "Mixture",
    items: "Sequence[Item]",
    parts: Iterable[range],
    even: Callable[[Sequence[O]], Sequence[O]],
) -> _Share[P]:
    """What this process finds out about the items at its places, one part after the other.

    even  of what was opened, what is predicted; behind the end may stand more
    """
    share: _Share[P] = _Share()
    for part in parts:
        opened: list[tuple[int, O]] = []
        for place in part:
            try:
                opened.append((place, method.open(mixture, items[place], place)))
            except BadSample as error:
                where = mixture.place(items[place])
                share.left_out.append({"list": name, "id": where, "reason": error.reason, "message": str(error)})
        if asked := even([one for _, one in opened]):
            predictions = method.predict(name, asked)
            share.found += zip((place for place, _ in opened), predictions, strict=False)
    return share


def _evened(world: "World", opened: Sequence[O]) -> Sequence[O]:
    """As many as the process with the most has: repeated, or another's where there is none."""
    counts = world.gather(len(opened))
    if 0 in counts:
        spare = [one for ones in world.gather(opened[:1]) for one in ones]
        opened = opened or spare
    return [opened[place % len(opened)] for place in range(max(counts))]
