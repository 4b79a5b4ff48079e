"""Writing data sets anew: in another format, another container, in shards, with a card.

    convert("data.jsonl", Path("out/train.parquet"))          # one file
    convert("folder", Path("out"), shard=5000)                # every split, in shards, with a README.md

One sample is held at a time. What was cut off goes on at the shard it was in; a finished conversion does nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.files import sha256, writing

from . import card
from .dataset import SUFFIXES, Dataset, licensed
from .errors import BadSample
from .formats import get_format
from .grounding import SPACES, as_text
from .job import Job, beside, check_free, clear, write_text
from .left_out import LEFT_OUT, Limit, check_left_out, leave_out, places, write_list
from .progress import track
from .sample import Sample
from .shards import SAMPLES, Figures, Shard, plan
from .walk import open_splits, said
from .writers import check_target, open_writer, suffix_for, write


@dataclass(frozen=True)
class Change:
    """What a conversion does to each sample.

    boxes    space in which regions are written out as text (`qwen3vl`, `qwen2.5vl`, `pixel`); None leaves them
    license  licence of samples that state none
    """

    boxes: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.boxes is not None and self.boxes not in SPACES:
            raise BadInput(f'unknown space of boxes "{self.boxes}"; there are {", ".join(SPACES)}.')

    def __call__(self, sample: Sample) -> Sample:
        sample = licensed(sample, self.license)
        return as_text(sample, self.boxes) if self.boxes else sample


class Written(dict[Path, Figures]):
    """The figures of each file; `before` if all had been written before, so that nothing was done."""

    before = False


def convert(
    source: str | Path,
    target: Path,
    format: str = "qvl",
    *,
    split: str | None = None,
    from_format: str | None = None,
    columns: Mapping[str, str] | None = None,
    media_root: Path | None = None,
    allow_root: Sequence[Path] = (),
    container: str | None = None,
    shard: int = SAMPLES,
    change: Change | None = None,
    max_bad: int = 0,
    fresh: bool = False,
) -> Written:
    """Write `source` (as `open_splits` takes it) to `target`; returns the figures of each file.

    A target with a suffix is one file. Any other is a folder, with every split (or only `split`) in shards of `shard`
    samples, in the `container` (parquet, tar or jsonl; default: Parquet for qvl, JSONL for other formats) and a card.
    Up to `max_bad` samples that cannot be used are left out and listed in left_out.jsonl, those of one file in
    FILE.left_out; one more raises BadSample.

    Raises BadInput, also where `target` holds something else; `fresh` writes it anew.
    """
    one_file = target.suffix in SUFFIXES
    suffix = target.suffix if one_file else f".{container}" if container else suffix_for(format)
    check_target(target if one_file else target / f"train{suffix}", format)
    get_format(format)
    with writing(target):
        target.exists()  # raises for a name that no file can have
    reading = {"format": from_format, "columns": columns, "media_root": media_root, "allow_root": tuple(allow_root)}
    datasets = _datasets(source, split, one_file, reading)
    folder, home = (target.parent, beside(target)) if one_file else (target, target)
    shards = [
        part
        for name, dataset in datasets.items()
        for part in (
            [Shard(name, target.name, 0, len(dataset))] if one_file else plan(name, len(dataset), suffix, shard)
        )
    ]
    change = change or Change()
    options: dict[str, Any] = {"format": format, "from_format": from_format, "columns": dict(columns or {})}
    options |= {"split": split, "media_root": None if media_root is None else str(media_root)}
    options |= {"allow_root": [str(root) for root in allow_root], "container": suffix, "shard": shard}
    options |= {"boxes": change.boxes, "license": change.license, **said(source)}
    outputs = [folder / part.name for part in shards]
    notes = folder / (f"{target.name}.left_out" if one_file else LEFT_OUT)
    inputs = [file for dataset in datasets.values() for file in dataset.files]
    _check_apart(inputs, outputs, target, one_file)
    check_free(home, [*outputs, notes, *([] if one_file else [folder / card.NAME])], fresh)
    job = Job(home, "convert", inputs, options, fresh)
    before = job.result is not None
    if not before:
        if not one_file:
            clear(folder, {*job.dropped} - {part.name for part in shards})
        files: dict[str, dict[str, Any]] = {}
        for part in shards:
            limit = partial(leave_out, max_bad=max_bad, before=places(files.values()))
            work = partial(_write, datasets[part.split], part, folder / part.name, format, change, limit)
            files[part.name] = job.step(part.name, work, folder / part.name)
        check_left_out(files.values(), max_bad)
        write_list(files.values(), notes)
        if not one_file:
            _write_card(folder, shards, files, _title(source))
        job.finish(files, outputs)
    check_left_out(job.result.values(), max_bad)
    written = Written({folder / name: Figures(**figures) for name, figures in job.result.items()})
    written.before = before
    return written


def write_samples(samples: Iterable[Sample], file: Path, format: str = "qvl") -> int:
    """Write samples to a new Parquet, tar or JSONL file; returns how many. After an error there is no file."""
    check_target(file, format)
    if file.exists():
        raise BadInput(f"{file}: is already there; remove it or choose another name.")
    return write(samples, file, format)


def _datasets(source: str | Path, split: str | None, one_file: bool, reading: Mapping[str, Any]) -> dict[str, Dataset]:
    """What is to be converted, by split."""
    sets, broken = open_splits(source, split, **reading)
    if broken:
        raise broken[0]
    if one_file and len(sets) > 1:
        raise BadInput(f"{source}: holds several splits; name a target folder, or one split with --split.")
    return sets


def _check_apart(inputs: Sequence[Path], outputs: Sequence[Path], target: Path, one_file: bool) -> None:
    """Raise BadInput if what is read would be written over, or stand beside what is written as the same split."""
    read = {file.resolve() for file in inputs}
    if over := next((file for file in outputs if file.resolve() in read), None):
        raise BadInput(f"{over}: is what is read; choose another name for what is written.")
    if not one_file and target.resolve() in {file.parent for file in read}:
        raise BadInput(f"{target}: holds the data that is read; choose another folder.")


def _write(dataset: Dataset, part: Shard, file: Path, format: str, change: Change, limit: Limit) -> dict[str, Any]:
    """Write one shard; its figures as JSON. What cannot be used goes to `limit`, which raises it or leaves it out."""
    figures = Figures()
    with open_writer(file, format) as writer:
        for index in track(part.indices, f"convert {file.name}", len(part.indices)):
            try:
                changed = change(dataset[index])
                writer.write(changed)
            except BadSample as error:
                limit(figures, dataset.rows.place(index), error)
            else:
                figures.add(changed)
    figures.bytes, figures.sha256 = file.stat().st_size, sha256(file)
    return figures.to_dict()


def _write_card(folder: Path, shards: Sequence[Shard], files: Mapping[str, Mapping[str, Any]], title: str) -> None:
    by_split: dict[str, dict[str, Figures]] = {}
    for part in shards:
        by_split.setdefault(part.split, {})[part.name] = Figures(**files[part.name])
    write_text(folder / card.NAME, card.card(title, by_split, f"Written by qvl-data convert from `{title}`."))


def _title(source: str | Path) -> str:
    return Path(source).resolve().name if Path(source).exists() else str(source)
