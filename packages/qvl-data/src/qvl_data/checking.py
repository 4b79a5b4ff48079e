"""What `check` says of the data of a recipe, for every method: counts, lengths, bad samples, samples in two lists.

No torch is imported here.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.training.samples import Bad, LeftOut

from .order import order
from .sources import Item, Mixture, shared

T = TypeVar("T")

ENCODED = 2000  # samples of a list that are encoded in full, pictures and all: a fixed random choice of a longer list
SHOWN = 2  # samples of the first batch that are printed


@dataclass
class ListFacts:
    """What was found in one list of sources."""

    samples: int
    lengths: list[int] = field(default_factory=list)
    labels: int = 0
    bad: list[Bad] = field(default_factory=list)


class Learnable(Protocol):
    """What is learned of a sample: its length in tokens, and how many of them are learned."""

    def __len__(self) -> int: ...

    @property
    def count(self) -> int: ...


def read_list(
    mixture: Mixture, encode: Callable[[Item], Learnable], meet: Callable[[Item, Bad | None], None] | None = None
) -> ListFacts:
    """Encode the samples of a list, at most ENCODED; `meet` is told of each, and why it cannot be used if so.

    encode  raises LeftOut
    """
    items = list(mixture.items())
    chosen = items if len(items) <= ENCODED else [items[order(0, place, len(items))] for place in range(ENCODED)]
    facts = ListFacts(len(mixture))
    for item in chosen:
        bad = None
        try:
            encoded = encode(item)
            facts.lengths.append(len(encoded))
            facts.labels += encoded.count
        except LeftOut as error:
            bad = error.bad
            facts.bad.append(bad)
        if meet is not None:
            meet(item, bad)
    return facts


def show_lists(facts: dict[str, ListFacts], console: Console) -> None:
    """Print a table of the lists, and an example of each reason for which samples cannot be used."""
    console.print(_table(facts))
    for name, found in facts.items():
        for reason, count in Counter(entry.reason for entry in found.bad).items():
            example = next(entry.message for entry in found.bad if entry.reason == reason)
            console.print(f"{name}: {count} x {reason}, such as: {example}", style="red", markup=False)


def first_samples(at: Callable[[int], T], rows: Sequence[tuple[int, ...]]) -> Iterator[T]:
    """The first SHOWN samples of a step's rows that can be used.

    at  what stands at a position of the run's order; raises LeftOut
    """
    shown = 0
    for position in (position for row in rows for position in row):
        try:
            yield at(position)
        except LeftOut:
            continue
        shown += 1
        if shown == SHOWN:
            return


def leaks(lists: dict[str, Mixture]) -> list[str]:
    """A sentence for each pair of lists that share samples."""
    return [
        f"{leak}; what is learned would be measured: name disjoint parts ([train:N,test:M])" for leak in shared(lists)
    ]


def conclude(
    console: Console,
    notes: Iterable[str],
    facts: dict[str, ListFacts],
    max_bad: int,
    out: Path | None,
    pictures: Mapping[str, bytes] | None = None,
) -> None:
    """Print what is doubtful, and write what was printed, the bad samples and pictures (by their names) to `out`.

    Raises BadInput if there are more bad samples than the recipe bears.
    """
    for sentence in notes:
        console.print(f"note: {sentence}", style="yellow", markup=False)
    if out is not None:
        _write_bad(facts, out)
        write_atomic(out / "check.html", console.export_html())
        for name, data in (pictures or {}).items():
            write_atomic(out / name, data)
    _judge(facts, max_bad)


def _write_bad(facts: dict[str, ListFacts], out: Path) -> None:
    """List all bad samples in out/bad_samples.jsonl."""
    entries = [{"list": name, **asdict(bad)} for name, found in facts.items() for bad in found.bad]
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_atomic(out / "bad_samples.jsonl", "".join(lines))


def _judge(facts: dict[str, ListFacts], max_bad: int) -> None:
    """Raise BadInput if there are more bad samples than the recipe bears."""
    grave = [entry for found in facts.values() for entry in found.bad if not entry.tolerated]
    if len(grave) > max_bad:
        raise BadInput(
            f"{len(grave)} bad samples, data.max_bad allows {max_bad}; mend or remove them "
            "(--out DIR lists all), or raise data.max_bad."
        )


def _table(facts: dict[str, ListFacts]) -> Table:
    table = Table(title="data")
    table.add_column("list")
    for title in ("samples/epoch", "read", "bad", "tokens: median", "p95", "longest", "labels"):
        table.add_column(title, justify="right")
    for name, found in facts.items():
        lengths = np.array(found.lengths or [0])
        numbers = (np.median(lengths), np.percentile(lengths, 95), lengths.max())
        table.add_row(
            name,
            f"{found.samples:,}",
            f"{len(found.lengths) + len(found.bad):,}",
            f"{len(found.bad):,}",
            *(f"{number:,.0f}" for number in numbers),
            f"{found.labels / max(1, lengths.sum()):.1%}",
        )
    return table
