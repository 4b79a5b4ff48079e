"""A clean data set: all samples without errors, and those whose errors can be mended without guessing.

    OUT/train.parquet ...   the samples, pictures inside; videos lie beside (see `carry`)
    OUT/fixes.txt           one line for each sample that was changed or left out, with its place

Mended are: an id that is given twice (the later one gets its number as a suffix), a box that reaches over the border of
its picture (cut off there), a stated size that is wrong (the real one), a byte order mark (left away). Everything else
with an error is left out. Other warnings change nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_core.errors import BadInput

from ..carry import embedded
from ..dataset import Dataset
from ..errors import BadSample, severity
from ..grounding import clip
from ..job import Job, complete
from ..json_lines import parse
from ..parquet import Writer
from ..sample import Sample
from ..shards import Shard, plan
from .across import Across
from .checks import Checks
from .finding import Finding, read_findings
from .quarantine import row_of
from .work import Work, hash_of, read

MENDED = ("json", "duplicate_id", "region_beyond", "media_stated_size")
"""Reasons that can be mended without guessing (json: only a byte order mark)."""
_BOM = b"\xef\xbb\xbf"


def _is_fault(finding: Finding) -> bool:
    return finding.severity == "error" or finding.reason in MENDED


def write_clean(work: Work, across: Across, findings: Path, folder: Path, job: Job) -> tuple[int, int]:
    """Write the clean set shard by shard; returns how many samples were mended, and how many left out."""
    shards = [shard for split, data in work.sets.items() for shard in plan(split, len(data), ".parquet")]
    if all(job.is_done(f"clean {shard.name}") for shard in shards):
        mender = Mender(work, across, np.zeros(0, np.uint64))
    else:
        mender = Mender(work, across, across.ids())
    mended = left_out = 0
    groups = _by_shard(read_findings(findings), shards)
    for shard, found in groups:
        done = job.step(f"clean {shard.name}", partial(mender.write, shard, found, folder))
        mended, left_out = mended + done["mended"], left_out + done["left_out"]
    logs = [folder / ".validate" / f"{shard.name}.txt" for shard in shards]
    job.step("clean", partial(_join, logs, folder / "fixes.txt"))
    for log in logs:
        log.unlink(missing_ok=True)
    return mended, left_out


@dataclass
class Mender:
    """Mends samples. `ids` are the sorted hashes of all ids."""

    work: Work
    across: Across
    ids: NDArray[np.uint64]

    def __post_init__(self) -> None:
        self._headers = Checks(pixels=False)

    def write(self, shard: Shard, found: dict[int, list[Finding]], folder: Path) -> dict[str, int]:
        data = self.work.sets[shard.split]
        mended = left_out = 0
        lines = []
        with complete(folder / shard.name) as part, Writer(part) as writer:
            for index in shard.indices:
                faults = [finding for finding in found.get(index, ()) if _is_fault(finding)]
                place = data.rows.place(index)
                try:
                    sample, changes = self._mended(data, shard.split, index, faults)
                    writer.write(embedded(sample, folder))
                except BadInput as error:
                    left_out += 1
                    lines.append(f"{place}: left out: {_sentence(error, place)}")
                    continue
                mended += bool(changes)
                lines += [f"{place}: {change}" for change in changes]
        with complete(folder / ".validate" / f"{shard.name}.txt") as part:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        return {"mended": mended, "left_out": left_out}

    def _mended(self, data: Dataset, split: str, index: int, faults: list[Finding]) -> tuple[Sample, list[str]]:
        """The sample without its faults, and what was changed. Raises BadSample if that cannot be done."""
        changes: list[str] = []
        for fault in faults:
            if fault.reason not in MENDED:
                raise BadSample(fault.reason, fault.problem)
        reasons = {fault.reason for fault in faults}
        if "json" in reasons:
            sample = _without_mark(data, index)
            changes.append("the byte order mark was left away")
        else:
            sample = read(data, index)
        if "media_stated_size" in reasons:
            sample = self._sized(sample, changes)
        if "region_beyond" in reasons:
            sample = _clipped(sample, changes)
        if "duplicate_id" in reasons:
            new = self._new_id(sample.id, self.across.number(split, index))
            changes.append(f"id {sample.id!r} is now {new!r}")
            sample = _changed(sample, id=new)
        if faults:
            for problem in self._headers.problems(sample)[0]:
                if severity(problem.reason) == "error":
                    raise problem
        return sample, changes

    def _sized(self, sample: Sample, changes: list[str]) -> Sample:
        marked = {region.media for region in sample.regions}
        media = list(sample.media)
        for number, each in enumerate(media):
            if each.kind != "image" or not (each.width and each.height):
                continue
            stated = each.width, each.height
            media[number] = each.model_copy(update={"width": None, "height": None})
            size = sample.opener.size(media[number])
            if size != stated and number in marked:
                raise BadSample("media_stated_size", "regions were drawn for a picture of another size; correct both")
            if size != stated:
                changes.append(f"media[{number}] is {size[0]} x {size[1]} pixels, no longer {stated[0]} x {stated[1]}")
        return _changed(sample, media=tuple(media))

    def _new_id(self, old: str, number: int) -> str:
        """The id with the sample's number in the whole data set behind it, which nothing else has."""
        new = f"{old}-{number + 1}"
        while _among(hash_of(new.encode("utf-8", "surrogatepass")), self.ids):
            new += "-2"
        return new


def _without_mark(data: Dataset, index: int) -> Sample:
    place = data.rows.place(index)
    raw = row_of(data.rows, index)
    if raw is None or not raw.startswith(_BOM):
        data[index]  # tells again what is wrong
    row = parse((raw or b"").removeprefix(_BOM), place)
    return data.read(row, place)


def _clipped(sample: Sample, changes: list[str]) -> Sample:
    regions = list(sample.regions)
    for number, region in enumerate(regions):
        cut = clip(region, *sample.opener.size(sample.media[region.media]))
        if cut is None:
            raise BadSample("region_outside", f"regions[{number}] lies outside its picture; correct or remove it")
        if cut.xy != region.xy:
            changes.append(f"regions[{number}] {list(region.xy)} is cut to {list(cut.xy)}")
            regions[number] = cut
    return _changed(sample, regions=tuple(regions))


def _changed(sample: Sample, **fields: Any) -> Sample:
    return sample.model_copy(update=fields).read_from(sample.opener, sample.place)


def _among(value: int, sorted_values: NDArray[np.uint64]) -> bool:
    at = int(np.searchsorted(sorted_values, np.uint64(value)))
    return at < len(sorted_values) and int(sorted_values[at]) == value


def _by_shard(findings: Iterator[Finding], shards: list[Shard]) -> Iterator[tuple[Shard, dict[int, list[Finding]]]]:
    """Each shard with the findings of its samples by index; findings come in the order of the shards."""
    samples = groupby((f for f in findings if f.index >= 0), key=lambda finding: (finding.split, finding.index))
    grouped = ((*key, list(group)) for key, group in samples)
    waiting = next(grouped, None)
    for shard in shards:
        here: dict[int, list[Finding]] = {}
        while waiting is not None and waiting[0] == shard.split and waiting[1] in shard.indices:
            here[waiting[1]] = waiting[2]
            waiting = next(grouped, None)
        yield shard, here


def _join(logs: list[Path], file: Path) -> int:
    with complete(file) as part, part.open("wb") as out:
        for log in logs:
            out.write(log.read_bytes())
    return len(logs)


def _sentence(error: BadInput, place: str) -> str:
    return str(error).removeprefix(f"{place}: ")
