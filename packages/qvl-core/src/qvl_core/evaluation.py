"""The folder of an evaluation: result.json, report.html, predictions.jsonl, and what could not be used."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.files import new_folder, write_atomic
from qvl_core.run import RunFolder

LEFT_OUT = "left_out.jsonl"


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


def write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSONL file; without records there is none, also if an earlier try left one."""
    if records:
        write_atomic(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    else:
        file.unlink(missing_ok=True)
