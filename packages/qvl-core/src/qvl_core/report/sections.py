"""What the report of every run shows, read from the files of its folder."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from qvl_core.report.blocks import Code, Curves, Figure, Figures, Picture, Pictures, Point, Section, Table, Text
from qvl_core.report.render import cell, media_type
from qvl_core.run import RunFolder, read_records

_SHOWN = 24  # pictures; rows of bad samples
_EVENTS_SHOWN = 200
_FIXED = {"schema", "package", "version", "command", "seed", "complete", "seconds", "wall_seconds"}
_TITLES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
    "mfu": "Model FLOPs utilisation",
    "memory_gb": "Peak memory (GB)",
    "nonfinite": "Steps not applied (non-finite)",
}


def run_sections(run: RunFolder) -> list[Section]:
    """Sections of any run, finished or not; what the run has no file for is left out."""
    metrics, environment = run.read_metrics(), run.read_environment()
    sections = [
        Section("Result", _result(run.read_result(), metrics)),
        Section("Training", _curves(metrics)),
        Section("What is trained", _tune(environment.get("tune", []))),
        Section("Samples", _samples(run.samples)),
        Section("Samples left out", _bad(run)),
        Section("Events", _events(metrics), folded=True),
        Section("Recipe", _recipe(run), folded=True),
        Section("Environment", _environment(environment), folded=True),
    ]
    return [section for section in sections if section.blocks]


def run_lead(run: RunFolder) -> str:
    """One line under the title: what made the run, and when."""
    result, environment = run.read_result() or {}, run.read_environment()
    made = [f"{result['package']} {result['version']}", f"seed {result['seed']}"] if result else []
    return " · ".join([*made, *([environment["started"][:10]] if environment else [])])


def _result(result: Mapping[str, Any] | None, metrics: Sequence[Mapping[str, Any]]) -> list[Any]:
    if result is None:
        last = metrics[-1]["step"] if metrics else 0
        return [Text(f"This run has not finished; its last record is of step {last:,}.", tone="note")]
    figures = {name: value for name, value in result.items() if name not in _FIXED}
    measured = [Figure(_words(name), value) for name, value in figures.items() if isinstance(value, float)]
    times = [
        Figure("processor time", _duration(result["seconds"])),
        Figure("wall time", _duration(result["wall_seconds"])),
    ]
    others = {name: value for name, value in figures.items() if not isinstance(value, float)}
    blocks: list[Any] = [Figures([*measured, *times])]
    if not result["complete"]:
        blocks.insert(0, Text("This run ended before it was complete.", tone="bad"))
    if others:
        blocks.append(Table([{_words(name): value for name, value in others.items()}]))
    return [*blocks, Code(result["command"], title="Command")]


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A chart per figure; `lr/llm` and `lr/merger` share one, and so do the training and the validation loss."""
    charts: dict[str, dict[str, dict[int, float | None]]] = {"loss": {}}
    for evaluation in (True, False):  # charts of what is measured come before those of how it went
        for record in metrics:
            if record.get("event") != ("evaluation" if evaluation else None):
                continue
            for name, value in record.items():
                if name not in {"step", "event", "elapsed"} and isinstance(value, int | float | None):
                    chart, series = _place(name, evaluation)
                    charts.setdefault(chart, {}).setdefault(series, {})[record["step"]] = value  # the last of a step
    return [
        _chart(name, {label: list(points.items()) for label, points in series.items()})
        for name, series in charts.items()
        if series and (name != "nonfinite" or any(next(iter(series.values())).values()))
    ]


def _chart(name: str, series: Mapping[str, Sequence[Point]]) -> Curves:
    exact = name in {"lr", "memory_gb", "nonfinite"}
    training_first = dict(sorted(series.items(), key=lambda item: item[0] == "validation"))
    return Curves(_title(name), training_first, log=not exact and _wide(series), smooth=not exact)


def _place(name: str, evaluation: bool) -> tuple[str, str]:
    """The chart and the series of a figure."""
    if name == "validation_loss":
        return "loss", "validation"
    chart, _, part = name.partition("/")
    if chart == "loss" and not evaluation:
        return ("loss parts", part) if part else ("loss", "training")
    return chart, part or _title(chart).lower()


def _title(chart: str) -> str:
    return _TITLES.get(chart) or _words(chart).capitalize()


def _wide(series: Mapping[str, Sequence[Point]]) -> bool:
    """Whether values span so much that only a logarithmic scale shows them: from early peak to low plateau."""
    values = sorted(y for points in series.values() for _, y in points if y is not None)
    return len(values) >= 8 and values[0] > 0 and values[-1] / values[len(values) // 4] > 50


def _tune(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    if not rows:
        return []
    total, trained = (sum(row.get(name) or 0 for row in rows) for name in ("parameters", "trainable"))
    note = f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})." if total else ""
    return [Table(rows, note=note)]


def _samples(folder: Path) -> list[Any]:
    """The newest pictures of samples/; a text file of the same name is the caption."""
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".png", ".jpg", ".jpeg"})
    pictures = [Picture(file.read_bytes(), _caption(file, folder)) for file in files[-_SHOWN:]]
    whole = [picture for picture in pictures if media_type(picture.data)]  # a killed process may leave an empty file
    return [Pictures(whole, width=160)] if whole else []


def _caption(file: Path, folder: Path) -> str:
    text = file.with_suffix(".txt")
    return text.read_text(encoding="utf-8") if text.is_file() else file.relative_to(folder).with_suffix("").as_posix()


def _bad(run: RunFolder) -> list[Any]:
    rows = read_records(run.bad_samples_file)
    note = f"The first {_SHOWN} of {len(rows):,}; all are in {run.bad_samples_file.name}." if len(rows) > _SHOWN else ""
    return [Table(rows[:_SHOWN], note=note)] if rows else []


def _events(metrics: Sequence[Mapping[str, Any]]) -> list[Any]:
    events = [record for record in metrics if "event" in record]
    rows = [
        {
            "step": record["step"],
            "event": record["event"],
            "details": "\n".join(f"{name}: {cell(value)}" for name, value in islice(record.items(), 2, None)),
        }
        for record in events[-_EVENTS_SHOWN:]
    ]
    return [Table(rows)] if rows else []


def _recipe(run: RunFolder) -> list[Any]:
    return [Code(run.recipe_file.read_text(encoding="utf-8"))] if run.recipe_file.is_file() else []


def _environment(environment: Mapping[str, Any]) -> list[Any]:
    facts = {
        name: value
        for name, value in environment.items()
        if not isinstance(value, dict) and name not in {"tune", "schema"}
    }
    tables = [
        Table([{"": _words(name), "value": cell(value)} for name, value in facts.items() if value is not None]),
        Table([{"": name, "version": version} for name, version in environment.get("packages", {}).items()]),
    ]
    return [table for table in tables if table.rows]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
