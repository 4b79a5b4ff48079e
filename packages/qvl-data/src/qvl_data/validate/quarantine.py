"""The bad rows as they were, and their reasons: so that they can be mended by hand and put back.

DIR/train.jsonl            the bad rows of the split, one on each line, verbatim where the data is JSON
DIR/reasons/train.jsonl    for each of them its line, the place it came from, and what is wrong with it

A row that is over 16 MiB, or lies in a damaged part of its file, has no line: it stays where it is.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput

from ..dataset import Dataset, Rows
from ..job import Job, complete
from ..spans import MAX_BYTES
from .finding import Finding, read_findings


def write_quarantine(sets: Mapping[str, Dataset], findings: Path, folder: Path, job: Job) -> None:
    """Write the rows with errors of each split that has some."""
    spoiled = {finding.split for finding in read_findings(findings) if finding.severity == "error"}
    for split, data in sets.items():
        if split not in spoiled:
            continue
        job.step(f"quarantine {split}", partial(_write_split, split, data, findings, folder))


def bad_samples(findings: Iterable[Finding], split: str) -> Iterator[tuple[int, list[Finding]]]:
    """Index and findings of each sample of a split that has an error."""
    here = (finding for finding in findings if finding.split == split and finding.index >= 0)
    for index, group in groupby(here, key=lambda finding: finding.index):
        found = list(group)
        if any(finding.severity == "error" for finding in found):
            yield index, found


def _write_split(split: str, data: Dataset, findings: Path, folder: Path) -> int:
    count = 0
    names = folder / f"{split}.jsonl", folder / "reasons" / f"{split}.jsonl"
    with complete(names[0]) as part, complete(names[1]) as other, part.open("wb") as rows, other.open("wb") as reasons:
        for index, found in bad_samples(read_findings(findings), split):
            if (raw := row_of(data.rows, index)) is not None:
                count += 1
                rows.write(raw + b"\n")
            record = {
                "line": None if raw is None else count,
                "place": found[0].place,
                "id": found[0].id,
                "reasons": [finding.reason for finding in found],
                "problems": [finding.problem for finding in found],
            }
            reasons.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    return count


def row_of(rows: Rows, index: int) -> bytes | None:
    """A row on one line: as it stands in the data where that is JSON, else as JSON; None if it cannot be copied."""
    raw = getattr(rows, "raw", None)
    if raw is not None and (row := raw(index)) is not None:
        if len(row) > MAX_BYTES:
            return None
        return bytes(row).replace(b"\r\n", b" ").replace(b"\n", b" ")  # of an array; there a line end is white space
    try:
        return json.dumps(rows[index], ensure_ascii=False, default=_other).encode("utf-8", "surrogatepass")
    except BadInput:
        return None


def _other(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)
