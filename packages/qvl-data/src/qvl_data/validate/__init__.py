"""Looking at every sample before anything is trained on it: what is wrong, where, and how to mend it.

    found = validate(Path("photos.jsonl"))
    found.bad, found.reasons["image_truncated"].count

    validate(Path("photos"), out=Path("report"), quarantine=Path("bad"), fix_to=Path("clean"))

Samples are checked in steps, in one process or several; then ids, samples and pictures are compared across all splits.
What is kept in memory of a sample is 16 bytes for each of its id, content and pictures. With a folder to write to, a
validation that was stopped goes on where it was. The data itself is never changed.
"""

import heapq
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from qvl_core.errors import BadInput

from ..dataset import Dataset
from ..errors import Severity, severity
from ..job import Job, complete
from ..progress import track
from ..walk import Step, check_outside, inputs, open_splits, said, steps, walk
from .across import Across, save
from .checks import Checks
from .finding import Finding, read_findings, to_line, write_findings
from .mend import write_clean
from .quarantine import write_quarantine
from .work import Checked, Work

__all__ = ["Finding", "Reason", "Validation", "counted", "read_findings", "validate"]

SCHEMA = "qvl.validation/1"
STEP = 500
"""Samples that are checked between two records of the journal."""
SHOWN = 3
"""Findings of each reason that the result names."""
WORK, PARTS = ".validate", "steps"


@dataclass
class Reason:
    """One reason: how bad it is, how often it was found, and the first findings as sentences."""

    severity: Severity
    count: int = 0
    first: list[str] = field(default_factory=list)


@dataclass
class Validation:
    """What was found.

    samples    all samples, by split in `splits`
    bad        samples with at least one error, and data files that cannot be read
    warned     samples with warnings alone
    pixels     whether pictures were decoded; else only their headers were read
    mended     samples that were changed on the way to the clean set; None if none was asked for
    left_out   samples that are not in the clean set; None if none was asked for
    """

    source: str
    pixels: bool
    samples: int = 0
    bad: int = 0
    warned: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)
    mended: int | None = None
    left_out: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, `qvl.validation/1`."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Validation":
        fields = {key: value for key, value in data.items() if key != "schema"}
        return cls(**fields | {"reasons": {code: Reason(**reason) for code, reason in data["reasons"].items()}})


def validate(
    source: str | Path,
    split: str | None = None,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    media_root: Path | None = None,
    allow_root: Sequence[Path] = (),
    pixels: bool = True,
    model: Path | None = None,
    max_length: int | None = None,
    out: Path | None = None,
    quarantine: Path | None = None,
    fix_to: Path | None = None,
    workers: int = 1,
    fresh: bool = False,
) -> Validation:
    """Check every sample of a source (as `open_splits` takes it), of a folder those of all splits.

    pixels      decode every picture, and every video up to its last frame; else read headers only
    model       folder of a model: tokens are counted, and what its chat template refuses is found
    max_length  longest sample in tokens; needs `model`
    out         folder for `findings.jsonl` and `validation.json`
    quarantine  folder for the bad rows as they were, and their reasons
    fix_to      folder for a data set (Parquet) of all samples without errors, and of those that can safely be mended
    workers     processes; what comes out is the same for every number

    Raises BadInput for arguments that make no sense and places that hold something else; bad data raises nothing.
    """
    if max_length is not None and model is None:
        raise BadInput("--max-length counts tokens; name the model's folder with --model.")
    reading = {"format": format, "columns": columns, "media_root": media_root, "allow_root": tuple(allow_root)}
    data = cache(partial(open_data, source, split, reading, model))
    work = partial(check, str(source), data, pixels=pixels, max_length=max_length, workers=workers)
    folders = [folder for folder in (out, quarantine, fix_to) if folder is not None]
    if not folders:
        with tempfile.TemporaryDirectory(prefix="qvl-validate-") as place:
            return work(Job(Path(place), "validate"), Path(place) / "findings.jsonl")
    for folder in folders:
        _check_place(folder, source)
    options = {"split": split, **reading, "pixels": pixels, "model": model, "max_length": max_length}
    options |= {"out": out, "quarantine": quarantine, "fix_to": fix_to, **said(source)}
    asked = {key: _plain(value) for key, value in options.items()}
    watched = [*inputs(source), *([model] if model else [])]
    jobs = [Job(folder / WORK, "validate", watched, asked, fresh, first=data) for folder in folders]
    first = jobs[0]
    if first.result is not None and any(job.result is None for job in jobs):  # files of another folder are gone
        first = jobs[0] = Job(first.home, "validate", watched, asked, fresh=True)
    if first.result is None:
        _remove(first.dropped, quarantine, fix_to)
        findings = (out or first.home / PARTS) / "findings.jsonl"
        result = work(first, findings, out=out, quarantine=quarantine, fix_to=fix_to)
        for job in reversed(jobs):
            job.finish(result.to_dict(), [file for file in job.home.parent.iterdir() if file.is_file()])
    return Validation.from_dict(first.result)


class Data(NamedTuple):
    """What is validated: all splits, what is wrong with those that cannot be opened, and what counts tokens."""

    sets: dict[str, Dataset]
    broken: list[BadInput]
    processor: Any


def open_data(source: str | Path, split: str | None, reading: Mapping[str, Any], model: Path | None) -> Data:
    """Open all splits of a source, and the processor of a model folder. Raises BadInput."""
    sets, broken = open_splits(source, split, **reading)
    sets = dict(sorted(sets.items(), key=lambda item: item[0] != "train"))  # what is held out is told, not `train`
    if model is None:
        return Data(sets, broken, None)
    from ..processor import open_processor

    return Data(sets, broken, open_processor(model))


def check(
    source: str, data: Callable[[], Data], job: Job, findings: Path, *, pixels: bool = True,
    max_length: int | None = None, out: Path | None = None, quarantine: Path | None = None, fix_to: Path | None = None,
    workers: int = 1,
) -> Validation:  # fmt: skip
    """Check all samples of what was opened, in steps of a job, and write the findings; see `validate`."""
    sets, broken, processor = data()
    work = Work(sets, Checks(pixels, processor, max_length))
    parts = job.home / PARTS
    files = _check(work, job, parts, f"validate {source}", workers)
    across = Across(sets, [(step.split, file.with_suffix(".npy")) for step, file in files])

    def join() -> dict[str, Any]:
        result = Validation(source, pixels, splits={name: len(data) for name, data in sets.items()})
        result.samples = sum(result.splits.values())
        whole = [_broken(error) for error in broken]
        whole += _unlicensed(sets, files, job)
        single = (finding for _, file in files for finding in read_findings(file))
        order = {name: number for number, name in enumerate(sets)}
        merged = heapq.merge(single, across.findings(), key=lambda found: (order[found.split], found.index))
        with complete(findings) as part, part.open("wb") as lines:
            for finding in counted(whole, merged, result):
                lines.write(to_line(finding))
        return result.to_dict()

    def write() -> tuple[int, int] | None:
        if quarantine is not None:
            write_quarantine(sets, findings, quarantine, job)
        return None if fix_to is None else write_clean(work, across, findings, fix_to, job)

    result = Validation.from_dict(job.step("findings", join))
    result.mended, result.left_out = job.step("outputs", write) or (None, None)
    if out is not None:
        with complete(out / "validation.json") as part:
            part.write_text(_json(result), encoding="utf-8", newline="\n")
    shutil.rmtree(parts, ignore_errors=True)
    return result


def _remove(steps: list[str], quarantine: Path | None, fix_to: Path | None) -> None:
    """Remove what an earlier run wrote that is started over: its splits and shards may have had other names."""
    for step in steps:
        verb, _, name = step.partition(" ")
        if verb == "clean" and name and fix_to is not None:
            (fix_to / name).unlink(missing_ok=True)
        if verb == "quarantine" and quarantine is not None:
            for folder in (quarantine, quarantine / "reasons"):
                (folder / f"{name}.jsonl").unlink(missing_ok=True)


def _check(work: Work, job: Job, folder: Path, what: str, workers: int) -> list[tuple[Step, Path]]:
    """Check what is not yet checked; the findings of each step (and, beside them, its hashes) in files, in order."""
    files = [(step, folder / f"{number:07d}.jsonl") for number, step in enumerate(steps(work.sets, STEP))]
    todo = [(step, file) for step, file in files if not job.is_done(str(step))]
    target = dict(todo)
    done = walk(work, target, workers)
    for step, checked in track(done, what, len(files), len(files) - len(todo)):
        job.step(str(step), partial(_keep, checked, target[step]))
    return files


def _keep(checked: Checked, file: Path) -> dict[str, int]:
    with complete(file.with_suffix(".npy")) as part:
        save(checked.hashes, part)
    with complete(file) as part:
        write_findings(checked.findings, part)
    return {"unlicensed": checked.unlicensed, "unread": checked.unread}


def _unlicensed(sets: Mapping[str, Dataset], files: list[tuple[Step, Path]], job: Job) -> Iterator[Finding]:
    """A note for each split in which samples state no licence."""
    for name, data in sets.items():
        without = sum(job.step(str(step), _recorded)["unlicensed"] for step, _ in files if step.split == name)
        if without:
            said = (
                f"{without:,} of {len(data):,} samples state no licence; state it (`meta.license`) where you know it."
            )
            yield Finding("license_missing", said, str(data.file), split=name)


def _broken(error: BadInput) -> Finding:
    """A data file that cannot be opened; the sentence names it first."""
    place, _, problem = str(error).partition(": ")
    return Finding("data_file", problem, place)


def _recorded() -> dict[str, int]:
    raise AssertionError("every step is recorded by now")


def counted(whole: Iterable[Finding], merged: Iterable[Finding], result: Validation) -> Iterator[Finding]:
    """The same findings, counted in `result` as they go by: of whole files, then of samples, those of each together."""
    at: tuple[str, int] | None = None
    worst = ""
    for finding in whole:
        _count(finding, result)
        result.bad += finding.severity == "error"
        yield finding
    for finding in merged:
        if (finding.split, finding.index) != at:
            at, worst = (finding.split, finding.index), ""
        _count(finding, result)
        if finding.severity == "error" and worst != "error":
            result.bad += 1
            result.warned -= worst == "warning"
            worst = "error"
        elif finding.severity == "warning" and not worst:
            result.warned += 1
            worst = "warning"
        yield finding


def _count(finding: Finding, result: Validation) -> None:
    reason = result.reasons.setdefault(finding.reason, Reason(severity(finding.reason)))
    reason.count += 1
    if len(reason.first) < SHOWN:
        reason.first.append(str(finding))


def _check_place(folder: Path, source: str | Path) -> None:
    if folder.exists() and not (folder / WORK).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: holds something else already; choose a new folder.")
    check_outside(folder, source)


def _plain(value: Any) -> Any:
    """An option as JSON can hold it."""
    if isinstance(value, Path):
        return str(value)
    return [str(path) for path in value] if isinstance(value, tuple) else value


def _json(result: Validation) -> str:
    return json.dumps(result.to_dict(), ensure_ascii=False, indent=1) + "\n"
