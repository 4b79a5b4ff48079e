"""Sections to one self-contained page: no script, no request, every text escaped."""

import base64
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import qvl_core
from qvl_core.report import curves as charts
from qvl_core.report.blocks import Block, Curves, Figure, Matrix, Picture, Section, Table

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
        "cell": cell,
        "columns": columns,
        "data_url": data_url,
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
        "svg": lambda block: Markup(charts.svg(block, salt=str(next(numbers)))),
        "tiny": tiny,
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


def rows(blocks: Sequence[Block]) -> list[tuple[bool, list[Block]]]:
    """Neighbouring charts and matrices share a row of tiles; all else takes the whole width."""
    groups = itertools.groupby(blocks, key=lambda block: isinstance(block, Curves | Matrix))
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
