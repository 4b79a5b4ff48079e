"""Statistics on the terminal."""

from rich.console import Console
from rich.table import Table

from qvl_core.printable import printable

from . import COUNTS, NUMBERS, Counts, Histogram, Stats

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 60  # characters of a value


def show(stats: Stats) -> None:
    """Print the figures: a table of the numbers, then what was counted by value."""
    console = Console(highlight=False, markup=False)
    said = f"{stats.source}: {stats.samples:,} samples"
    if stats.same_text:
        said += f", {stats.same_text:,} of them ({stats.same_text / stats.samples:.1%}) with the text of an earlier one"
    console.print(said, soft_wrap=True)
    if stats.numbers:
        console.print()
        console.print(_numbers(stats.numbers))
    for name, counts in stats.counts.items():
        if name == "first_word" and counts == stats.counts.get("answer"):
            continue  # answers of one word each
        console.print()
        if counts.distinct == 1:
            console.print(f"{COUNTS[name]}: all {counts.total:,} {_shown(counts.top[0][0])}", soft_wrap=True)
        else:
            console.print(_counts(COUNTS[name], counts))


def _numbers(numbers: dict[str, Histogram]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("numbers")
    for name in ("least", "median", "mean", "95 %", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("least..most", no_wrap=True)
    for name, histogram in numbers.items():
        figures = (histogram.minimum, histogram.median, histogram.mean, histogram.p95, histogram.maximum)
        table.add_row(NUMBERS[name], *map(_figure, figures), _bars(histogram))
    return table


def _counts(title: str, counts: Counts) -> Table:
    kinds = f"{counts.distinct:,} different" if counts.distinct is not None else "too many different ones to keep"
    even = f", evenness {counts.entropy:.2f}" if counts.entropy is not None else ""
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{title}: {counts.total:,}, {kinds}, largest {counts.largest:.1%}{even}", overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for value, count in counts.top:
        table.add_row(f"  {_shown(value)}", f"{count:,}", f"{count / counts.total:.1%}")
    if (rest := counts.total - sum(count for _, count in counts.top)) > 0:
        table.add_row("  all others", f"{rest:,}", f"{rest / counts.total:.1%}")
    if counts.missed:
        table.add_row(f"  (each count may be too low by up to {counts.missed:,})", "", "")
    return table


def _shown(value: str) -> str:
    """A value on one line, without control characters."""
    short = value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
    return printable(short) or "(empty)"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"


def _bars(histogram: Histogram) -> str:
    most = max(histogram.counts)
    return "".join(" " if count == 0 else _BARS[(count * 8 - 1) // most] for count in histogram.counts)
