"""Sections to one self-contained page: no script, no request, every text escaped."""

import base64
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import qvl_core
from qvl_core.printable import printable
from qvl_core.report import curves as charts
from qvl_core.report.blocks import (
    Bars,
    Block,
    Curves,
    Figure,
    Histogram,
    Matrix,
    Picture,
    Section,
    Shape,
    Stacks,
    Table,
)

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_TINY = 64  # pixels of a side below which a picture is enlarged with hard edges


def render(title: str, sections: Sequence[Section], lead: str = "") -> str:
    """The page as HTML. Raises ValueError on a picture that is neither PNG nor JPEG, or a matrix of the wrong shape."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    numbers = itertools.count(1)
    environment.filters |= {
        "bins": bins,
        "cell": cell,
        "columns": columns,
        "data_url": data_url,
        "compact": charts.compact,
        "describe": charts.describe,
        "headline": headline,
        "kind": lambda block: type(block).__name__,
        "legend": legend,
        "matrix": matrix,
        "measurable": measurable,
        "number": number,
        "numeric": numeric,
        "paragraphs": lambda text: re.split(r"\n\s*\n", text.strip()),
        "percent": lambda value: f"{100 * value:.4g}%",
        "rows": rows,
        "seen": seen,
        "shares": shares,
        "spot": spot,
        "svg": lambda block: Markup(charts.svg(block, salt=str(next(numbers)))),
        "ticks": ticks,
        "tiny": tiny,
        "whole": whole,
        "widths": widths,
    }
    html = environment.get_template("page.html.jinja").render(
        title=title,
        lead=lead,
        sections=sections,
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        footer=f"Written by qvl-core {qvl_core.__version__}. One file: no script runs, nothing is fetched.",
    )
    return html.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair from broken data becomes "?"


def number(value: float) -> str:
    """A number for reading: 12,345; 0.3512; 2e-4."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1e9 or 0 < abs(value) <= 1e-3:
        return charts.scientific(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def headline(value: Any) -> str:
    """As `number`; fractions with three decimals, so that they can be compared at a glance."""
    return f"{value:.3f}" if isinstance(value, float) and 1e-3 <= abs(value) < 10 else cell(value)


def cell(value: Any) -> str:
    """Any value of a table."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return str(value)


def columns(table: Table) -> list[str]:
    """The columns given, else all keys in the order first seen."""
    return list(table.columns or dict.fromkeys(key for row in table.rows for key in row))


def numeric(table: Table, column: str) -> bool:
    """Whether a column holds numbers and nothing else."""
    values = [row[column] for row in table.rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def measurable(figure: Figure) -> bool:
    """Whether a figure has a place on a scale from 0 to 1 that says something."""
    told = figure.bar is not None or figure.chance is not None
    return told and isinstance(figure.value, int | float) and 0 <= figure.value <= 1


def legend(chart: Curves) -> list[tuple[str, str]]:
    """Name and last value of each series."""
    last = {name: charts.finite(points)[-1:] for name, points in chart.series.items()}
    return [(name, charts.compact(end[0][1]) if end else "") for name, end in last.items()]


def matrix(block: Matrix) -> Iterator[tuple[str, list[tuple[int, float, bool]]]]:
    """For each row its label, and per cell the count, its share of the row, and whether it is a right answer."""
    heads = list(block.columns or block.labels)
    if len(block.counts) != len(block.labels) or any(len(row) != len(heads) for row in block.counts):
        raise ValueError(f"matrix {block.title!r}: counts must be {len(block.labels)} rows of {len(heads)}")
    for label, row in zip(block.labels, block.counts, strict=True):
        total = max(sum(row), 1)
        yield label, [(count, count / total, head == label) for head, count in zip(heads, row, strict=True)]


def bins(block: Histogram) -> list[tuple[float, float, int, float]]:
    """Of each bin: from, up to, count, and its share of the fullest bin."""
    if len(block.edges) != len(block.counts) + 1:
        raise ValueError(f"histogram {block.title!r}: {len(block.counts)} counts need as many edges and one more")
    most = max(block.counts, default=0) or 1
    edges = itertools.pairwise(block.edges)
    return [(low, high, count, count / most) for (low, high), count in zip(edges, block.counts, strict=True)]


def whole(block: Histogram) -> bool:
    """Whether each bin is one whole number."""
    return all(low == int(low) and high == low + 1 for low, high in itertools.pairwise(block.edges))


def ticks(block: Histogram, most: int = 6) -> list[tuple[float, str]]:
    """What to name, as (place from 0 to 1, text), few enough to stand side by side: edges of bins, or whole numbers."""
    last = len(block.edges) - 1
    step = max(1, -(-last // most))
    if whole(block):
        return [((place + 0.5) / last, charts.compact(block.edges[place])) for place in range(0, last, step)]
    return [(place / max(last, 1), charts.compact(block.edges[place])) for place in range(0, last + 1, step)]


def shares(block: Bars) -> list[tuple[str, int, float, float]]:
    """Of each row: value, count, share of all, share of the longest bar."""
    total = block.total or sum(count for _, count in block.rows) or 1
    most = max((count for _, count in block.rows), default=0) or 1
    return [(value, count, count / total, count / most) for value, count in block.rows]


def seen(text: str) -> list[str]:
    """The lines of a text, with what cannot be seen spelt out."""
    return [printable(line, kept="\t\u200d\ufe0f") for line in text.split("\n")]  # the two that join an emoji


def spot(shape: Shape, size: tuple[int, int]) -> tuple[float, float, bool]:
    """Where a shape's label stands, in shares of the picture's width and height, and whether it hangs below that place.

    At a box's or polygon's upper left corner, at a point; kept inside the picture, where a line of text needs about 6 %
    of its width.
    """
    x, y = min(shape.xy[::2]), min(shape.xy[1::2])
    return min(max(x / size[0], 0.0), 0.95), min(max(y / size[1], 0.0), 1.0), y < 0.06 * size[0]


def widths(segments: Sequence[tuple[str, int, int]], block: Stacks) -> list[tuple[str, float, int]]:
    """Of each segment of a bar: what it is, its share of a full bar, its colour."""
    total = block.total or max((sum(amount for _, amount, _ in row) for _, row, _ in block.rows), default=0) or 1
    return [(what, amount / total, colour) for what, amount, colour in segments if amount]


def rows(blocks: Sequence[Block]) -> list[tuple[bool, list[Block]]]:
    """Neighbouring charts and matrices share a row of tiles; all else takes the whole width."""
    groups = itertools.groupby(blocks, key=lambda block: isinstance(block, Curves | Matrix | Histogram | Bars))
    return [(tiles, list(group)) for tiles, group in groups]


def media_type(data: bytes) -> str | None:
    """By its first bytes: image/png, image/jpeg, or None for anything else."""
    return next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)


def data_url(picture: Picture) -> str:
    """The picture inside the page."""
    if (kind := media_type(picture.data)) is None:
        raise ValueError(f"picture {picture.caption!r} is neither PNG nor JPEG")
    return f"data:{kind};base64,{base64.b64encode(picture.data).decode('ascii')}"


def tiny(picture: Picture) -> bool:
    """Whether a PNG has a side below 64 pixels (width and height follow its signature and chunk header)."""
    sides = (int.from_bytes(picture.data[start : start + 4], "big") for start in (16, 20))
    return media_type(picture.data) == "image/png" and min(sides) < _TINY
