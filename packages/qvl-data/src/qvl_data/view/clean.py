"""A data set without what was rejected."""

from functools import partial
from pathlib import Path

from qvl_core.errors import BadInput

from ..dataset import Dataset
from ..job import NAME as JOURNAL
from ..job import Job, beside
from ..progress import track
from ..writers import check_target, open_writer
from .marks import Marks


def write_clean(data: Dataset, marks: Marks, out: Path, only_accepted: bool = False, fresh: bool = False) -> int:
    """Write the samples that were not rejected, or only the accepted ones, to `out`; returns how many.

    Goes on after a kill; a finished one is left. Raises BadInput if the data is not what was marked.
    """
    check_target(out)
    if out.exists() and not (beside(out) / JOURNAL).is_file():
        raise BadInput(f"{out}: is already there; choose another name.")
    _check(data, marks)
    kept = _kept(data, marks, only_accepted)
    options = {"only_accepted": only_accepted, "reading": data.reading}
    inputs = [*data.files, *([marks.file] if marks.file.is_file() else [])]
    job = Job(beside(out), "view --write-clean", inputs, options, fresh)
    if job.result is None:
        job.finish(job.step("write", partial(_write, data, kept, out)), [out])
    count: int = job.result
    return count


def _kept(data: Dataset, marks: Marks, only_accepted: bool) -> list[int]:
    kept = [i for i in range(len(data)) if marks[i].mark == "accept" or (not only_accepted and marks[i].mark == "")]
    if not kept:
        raise BadInput(f"{marks.file}: not one sample is {'accepted' if only_accepted else 'left'}; nothing to write.")
    return kept


def _check(data: Dataset, marks: Marks) -> None:
    """Marks name samples by number and id: both must still fit."""
    for mark in marks:
        if mark.index >= len(data):
            raise BadInput(f"{marks.file}: sample {mark.index} was marked, but {data.file} now holds {len(data)}.")
        if mark.mark and mark.id and (found := data.outline(mark.index).id) != mark.id:
            raise BadInput(
                f"{marks.file}: sample {mark.index} was {mark.id!r} when it was marked and is now {found!r};"
                f" {data.file} has changed since, so mark it again."
            )


def _write(data: Dataset, kept: list[int], out: Path) -> int:
    with open_writer(out) as writer:
        for index in track(kept, f"write {out.name}", len(kept)):
            writer.write(data[index])
    return len(kept)
