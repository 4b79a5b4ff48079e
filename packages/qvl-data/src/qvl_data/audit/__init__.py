"""One page on a data set, to be read before anything is trained on it: samples, distributions, duplicates, errors.

    audit(Path("digits"), Path("report.html"))

The page is one HTML file that asks for nothing from outside. The same data always gives the same page.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from qvl_core.errors import BadInput
from qvl_core.report import render

from ..dedup.prints import PRINTS, Fingerprint, all_prints, same
from ..job import Job, beside, complete
from ..stats import stats
from ..validate import Data, Validation, check, open_data, read_findings
from ..walk import inputs, said
from . import sections

RADIUS = 4
"""Bits of 64 in which pictures that look alike may differ; see `hashing.phash`."""
SAMPLES = 24


def audit(
    source: str | Path,
    out: Path,
    *,
    split: str | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    media_root: Path | None = None,
    allow_root: Sequence[Path] = (),
    model: Path | None = None,
    samples: int = SAMPLES,
    workers: int = 1,
    fresh: bool = False,
) -> dict[str, Any]:
    """Write the report on a source (as `open_splits` takes it) to `out`; returns `samples`, `bad`, `duplicates`.

    model    folder of a model, to count tokens
    samples  how many are shown
    workers  processes; the page is the same for every number

    Raises BadInput; what is wrong with single samples stands in the report.
    """
    if out.suffix != ".html":
        raise BadInput(f"{out}: the report is a web page; name it {out.with_suffix('.html').name}.")
    reading: dict[str, Any] = {
        "format": format, "columns": columns, "media_root": media_root, "allow_root": tuple(allow_root)
    }  # fmt: skip
    options = {"split": split, **{key: str(value) for key, value in reading.items()}, "samples": samples}
    options |= said(source)
    data = cache(partial(_open, source, split, reading, model))
    start = partial(Job, inputs=[*inputs(source), *([model] if model else [])], options=options, fresh=fresh)
    job = start(beside(out), "audit", first=data)
    if job.result is None:
        checked = start(job.home / "validate", "validate", scratch=True)
        prints = start(job.home / PRINTS, "fingerprints", scratch=True)
        name = os.path.basename(os.path.realpath(source)) if os.path.exists(source) else str(source)
        title = name + (f" · {split}" if split else "")
        job.finish(_audit(data(), checked, prints, inputs(source)[0], str(source), title, out, samples, workers), [out])
    shutil.rmtree(job.home / PRINTS, ignore_errors=True)
    result: dict[str, Any] = job.result
    return result


def _open(source: str | Path, split: str | None, reading: Mapping[str, Any], model: Path | None) -> Data:
    data = open_data(source, split, reading, model)
    if not data.sets:
        raise data.broken[0]
    return data


def _audit(
    data: Data, checked: Job, printed: Job, first: Path, source: str, title: str, out: Path, samples: int, workers: int
) -> dict[str, Any]:
    findings = checked.home / "findings.jsonl"
    if checked.result is None:
        checked.finish(check(source, lambda: data, checked, findings, workers=workers).to_dict(), [findings])
    found, sets = Validation.from_dict(checked.result), data.sets
    figures = stats(sets, data.processor, source=source, workers=workers)
    prints = all_prints(Fingerprint(sets, perceptual=True, strict=False), printed, workers)
    kept, distance = same(prints, np.arange(len(prints)), RADIUS)
    folder = first if first.is_dir() else first.parent
    page = [
        sections.summary(figures, found, kept, sets),
        sections.gallery(sets, samples, folder),
        sections.distributions(figures),
        sections.values(figures),
        sections.duplicates(sets, kept, distance),
        sections.errors(sets, found, read_findings(findings), folder),
    ]
    with complete(out) as part:
        page_of = [section for section in page if section.blocks]
        part.write_text(render(title, page_of, sections.lead(found, sets)), encoding="utf-8", newline="\n")
    return {"samples": found.samples, "bad": found.bad, "duplicates": int((kept != np.arange(len(kept))).sum())}
