"""One page on a data set, to be read before anything is trained on it: samples, distributions, duplicates, errors.

    audit(Path("digits"), Path("report.html"))

The page is one HTML file that asks for nothing from outside. The same data always gives the same page.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qvl_core.errors import BadInput
from qvl_core.report import render

from ..dedup.prints import PRINTS, Fingerprint, all_prints, same
from ..job import Job, beside, complete
from ..stats import stats
from ..validate import read_findings, validate
from ..walk import inputs, open_splits
from . import sections

RADIUS = 4
"""Bits of 64 in which pictures that look alike may differ; see `hashing.phash`."""
SAMPLES = 24


def audit(
    source: Path,
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
    """Write the report on a file, or on all splits of a folder, to `out`; returns `samples`, `bad`, `duplicates`.

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
    job = Job(beside(out), "audit", [*inputs(source), *([model] if model else [])], options, fresh)
    if job.result is None:
        job.finish(_audit(job, source, out, split, reading, model, samples, workers, fresh), [out])
    shutil.rmtree(job.home / PRINTS, ignore_errors=True)
    result: dict[str, Any] = job.result
    return result


def _audit(
    job: Job, source: Path, out: Path, split: str | None, reading: dict[str, Any], model: Path | None, samples: int,
    workers: int, fresh: bool,
) -> dict[str, Any]:  # fmt: skip
    checked = job.home / "validate"
    found = validate(source, split, **reading, model=model, out=checked, workers=workers, fresh=fresh)
    sets, broken = open_splits(source, split, **reading)
    sets = dict(sorted(sets.items(), key=lambda item: item[0] != "train"))
    if not sets:
        raise broken[0]
    processor = None
    if model is not None:
        from ..processor import open_processor

        processor = open_processor(model)
    figures = stats(sets, processor, source=str(source), workers=workers)
    prints = all_prints(Fingerprint(sets, perceptual=True, strict=False), job.home, job, workers)
    kept, distance = same(prints, np.arange(len(prints)), RADIUS)
    (first, *_) = inputs(source)
    folder = first if first.is_dir() else first.parent
    page = [
        sections.summary(figures, found, kept, sets),
        sections.gallery(sets, samples, folder),
        sections.distributions(figures),
        sections.values(figures),
        sections.duplicates(sets, kept, distance),
        sections.errors(sets, found, read_findings(checked / "findings.jsonl"), folder),
    ]
    name = (source.resolve().name if source.exists() else str(source)) + (f" · {split}" if split else "")
    with complete(out) as part:
        page_of = [section for section in page if section.blocks]
        part.write_text(render(name, page_of, sections.lead(found, sets)), encoding="utf-8", newline="\n")
    return {"samples": found.samples, "bad": found.bad, "duplicates": int((kept != np.arange(len(kept))).sum())}
