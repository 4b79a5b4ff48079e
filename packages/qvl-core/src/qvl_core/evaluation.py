"""The folder of an evaluation: result.json, report.html, predictions.jsonl, and what could not be used."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.files import new_folder, old_name, write_atomic, writing
from qvl_core.run import RunFolder

LEFT_OUT = "left_out.jsonl"
REQUEST = "evaluation.json"


@contextmanager
def evaluation_folder(out: Path, fresh: bool) -> Iterator[RunFolder]:
    """The folder of a new evaluation or comparison, which appears at `out` when it is whole.

    fresh  move what an earlier one left there aside, to <name>.old-1, -2, ...

    Raises BadInput if something is there already, and for `fresh` if it is anything else.
    """
    held = out.is_dir() and any(out.iterdir())
    if held and not fresh:
        raise BadInput(f"{out}: is already there; choose another --out, or move it aside with --fresh.")
    if held and (not (out / "result.json").is_file() or (out / "recipe.yaml").is_file()):
        raise BadInput(f"{out}: is not the folder of an evaluation, which is never moved; choose another --out.")
    with new_folder(out, fresh) as aside:
        yield RunFolder(aside)


def continued_folder(out: Path, request: Mapping[str, Any], fresh: bool) -> RunFolder:
    """The folder of an evaluation that is written file by file, new or continued.

    request  all that its files depend on, as JSON values; evaluation.json in the folder holds it
    fresh    move what is at `out` aside

    Raises BadInput if the folder is that of another one.
    """
    file = out / REQUEST
    held = out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir())
    if held and not file.is_file():
        raise BadInput(f"{out}: holds something else than an evaluation; choose another --out.")
    with writing(out):
        if held and fresh:
            os.replace(out, old_name(out))
            held = False
        out.mkdir(parents=True, exist_ok=True)
    if not held:
        write_atomic(file, json.dumps(request, indent=2, ensure_ascii=False) + "\n")
        return RunFolder(out)
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise BadInput(f"{file}: is no JSON; start again with --fresh.") from None
    for name, value in request.items():
        if before.get(name) != value:
            raise BadInput(
                f"{out}: holds pictures of another `{name}`; choose another --out, or move them aside with --fresh."
            )
    return RunFolder(out)


def write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSONL file; without records there is none, also if an earlier try left one."""
    if records:
        write_atomic(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    else:
        file.unlink(missing_ok=True)


def show_figures(figures: Mapping[str, float]) -> None:
    """Print them, one on a line."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(show_header=False)
    for name, value in figures.items():
        shown.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    Console().print(shown)
