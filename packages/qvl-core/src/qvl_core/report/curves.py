"""A chart as SVG that takes its colours and its font from the page around it (light and dark), drawn by matplotlib.

Only numbers on the axes are SVG text; titles and legends are HTML, so that every script is readable.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.report.blocks import Curves, Point

COLOURS = 6  # --c1 ... --c6 in page.css
_INK, _GRID = "#000001", "#000002"  # stand-ins that become the page's own colours
_SERIES = [f"#0000a{number}" for number in range(1, COLOURS + 1)]
_STYLE = {"svg.fonttype": "none", "font.size": 10, "path.simplify": False}
_WIDTH, _HEIGHT = 460, 200  # points, one to one with CSS pixels at the usual width of a chart
_SMOOTHED_FROM, _MARKED_UP_TO = 20, 15  # points of a series


def finite(points: Sequence[Point]) -> list[tuple[float, float]]:
    """The points that have a value."""
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """At each place the straight line fitted through `reach` values to either side: no lag, no bend at the ends."""
    y = np.asarray(values, dtype=np.float64)
    place = np.arange(len(y), dtype=np.float64)
    first, last = np.maximum(place - reach, 0).astype(int), np.minimum(place + reach + 1, len(y)).astype(int)

    def window(terms: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.concatenate([[0.0], np.cumsum(terms)])
        return sums[last] - sums[first]

    count, mean_x, mean_y = last - first, window(place) / (last - first), window(y) / (last - first)
    spread = window(place**2) - count * mean_x**2
    slope = (window(place * y) - count * mean_x * mean_y) / np.maximum(spread, 1e-9)
    return (mean_y + slope * (place - mean_x)).tolist()


def thin(series: Sequence[Point], limit: int = 600) -> Sequence[Point]:
    """At most about `limit` points: of each stretch its lowest and its highest, so that no spike is lost."""
    if len(series) <= limit:
        return series
    stretch = math.ceil(2 * len(series) / limit)
    kept: list[Point] = []
    for start in range(0, len(series), stretch):
        points = finite(series[start : start + stretch])
        extremes = {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])} if points else set()
        kept += sorted(extremes) or [(series[start][0], None)]
    return kept


def compact(value: float) -> str:
    """A number in the width of an axis label: 1.5M, 12k, 0.25, 2e-4."""
    size = abs(value)
    if 0 < size < 1e-3 or math.isclose(size, 1e-3):
        return scientific(value)
    for limit, scale, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.4g}"


def scientific(value: float) -> str:
    """2e-4, 1.25e-10: up to three digits, and no more than needed."""
    digits, exponent = f"{value:.2e}".split("e")
    digits = digits.rstrip("0").rstrip(".")
    return f"{digits}e{int(exponent)}"


def describe(curves: Curves) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for name, series in curves.series.items():
        if points := finite(series):
            (x0, y0), (x1, y1) = points[0], points[-1]
            low, high = min(y for _, y in points), max(y for _, y in points)
            span = f"{compact(y0)} at {curves.x} {compact(x0)}, {compact(y1)} at {curves.x} {compact(x1)}"
            parts.append(f"{name}: {span}, lowest {compact(low)}, highest {compact(high)}")
    return f"Chart of {curves.title}. " + "; ".join(parts)


def svg(curves: Curves, salt: str = "") -> str:
    """Draw the chart. The same input gives the same text; `salt` keeps ids apart that share a page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"qvl{salt}"}):
        figure: Any = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
        axes = figure.add_axes((0.092, 0.105, 0.893, 0.865))
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.grid(axis="y", color=_GRID, linewidth=1, clip_on=False)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, which="both", colors=_INK)
        positive = [y for series in curves.series.values() for _, y in finite(series) if y > 0]
        if curves.log and positive:
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_locator(LogLocator(subs=_log_steps(positive), numticks=8))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        for number, series in enumerate(curves.series.values()):
            _draw(axes, series, _SERIES[number % COLOURS], curves.smooth, curves.log)
        return _inline(figure, FigureCanvasSVG)


def _draw(axes: Any, series: Sequence[Point], colour: str, smoothed: bool, log: bool) -> None:
    points = finite(series)
    if smoothed and len(points) >= _SMOOTHED_FROM:
        x, y = [x for x, _ in points], [y for _, y in points]
        averaged = _averaged(y, log)
        axes.plot(*_columns(thin(series)), color=colour, linewidth=1, alpha=0.3, clip_on=False)
        axes.plot(*_columns(thin(list(zip(x, averaged, strict=True)))), color=colour, linewidth=1.8, clip_on=False)
    else:
        marker = {"marker": "o", "markersize": 3.6, "markeredgewidth": 0} if len(points) <= _MARKED_UP_TO else {}
        axes.plot(*_columns(thin(series)), color=colour, linewidth=1.8, clip_on=False, **marker)


def _averaged(values: list[float], log: bool) -> list[float]:
    """Smoothed, on a logarithmic scale as logarithms, so that the line runs through the middle of what is seen."""
    reach = max(3, len(values) // 20)
    if log and min(values) > 0:
        return np.exp(smooth(np.log(values).tolist(), reach)).tolist()
    return smooth(values, reach)


def _columns(series: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in series], [math.nan if y is None else y for _, y in series]


def _log_steps(values: list[float]) -> tuple[float, ...]:
    """Label 1, 2 and 5 of each decade where there are few decades."""
    return (1.0, 2.0, 5.0) if max(values) / min(values) < 1e3 else (1.0,)


def _inline(figure: Any, canvas: Any) -> str:
    """The SVG element alone, without the ids and the style that would reach into the page."""
    file = io.StringIO()
    canvas(figure).print_svg(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = re.sub(r"^.*?<svg[^>]*>", "", text, count=1, flags=re.DOTALL)
    for pattern, replacement in _CLEANING.items():
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    for number, colour in enumerate(_SERIES, start=1):
        text = text.replace(colour, f"var(--c{number})")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">{text.strip()}'


_CLEANING = {
    r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>": "",
    r' id="[a-z0-9.]+_\d+"': "",  # those of groups; ids of markers, which are referred to, have no underscore
    r"xlink:href": "href",
    r" font-family: [^;\"]*;": "",
    r' transform="rotate\(-?0 [^"]*"': "",
    r"(\d\.\d\d)\d+(?=[\s\"])": r"\1",  # hundredths of a pixel, in coordinates; labels end before a "<"
    r"\s*\n\s*": " ",
    r"<defs> ?</defs>|<g/>": "",
    _INK: "currentColor",
    _GRID: "var(--grid)",
}
