"""Several sources written as one data set, in the order in which a training would draw them; or only counted.

mixture = Mixture("receipts + 0.2*plates")
expect(mixture, samples=100_000)                            # how often each source and each sample would be seen
write(mixture, Path("mixed"), samples=100_000, seed=0)      # shards, resumable, always the same bytes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qvl_core.errors import BadInput
from qvl_core.files import sha256
from qvl_core.recipe.sources import spell

from . import card
from .carry import embedded
from .errors import BadSample
from .job import Job, beside, check_free, clear, write_text
from .left_out import LEFT_OUT, Limit, check_left_out, leave_out, places, write_list
from .media import is_absolute
from .progress import track
from .sample import Media, Sample
from .shards import SAMPLES, Figures, Shard, plan
from .sources import Item, Mixture
from .writers import SUFFIXES, TEXT_TABLES, check_target, open_writer, suffix_for


@dataclass(frozen=True)
class Expected:
    """What a mixture draws of one source.

    source     as text
    available  samples in its data
    chosen     samples that are drawn from
    per_epoch  draws in an epoch
    draws      draws in the first `samples` of the order (expected where that ends within an epoch)
    passes     how often each chosen sample is seen by then
    """

    source: str
    available: int
    chosen: int
    per_epoch: int
    draws: float
    passes: float


class Written(NamedTuple):
    """The figures of each file, and whether all had been written before, so that nothing was done."""

    files: dict[Path, Figures]
    before: bool


def expect(mixture: Mixture, samples: int | None = None) -> list[Expected]:
    """What `samples` of the order (default: an epoch) hold of each source."""
    epochs = 1.0 if samples is None else samples / len(mixture)
    rows = zip(mixture.sources, mixture.datasets, mixture.sizes, mixture.draws, strict=True)
    return [
        Expected(spell(source.model_dump()), len(dataset), size, draws, draws * epochs, draws * epochs / size)
        for source, dataset, size, draws in rows
    ]


def tempered(draws: Sequence[int], sizes: Sequence[int], temperature: float) -> list[float]:
    """Weights under which source i has a share of an epoch in proportion to draws_i ** (1 / temperature).

    1 changes nothing; above it small sources are seen more often, up to equal shares. The epoch keeps its length.
    """
    if not temperature > 0:
        raise BadInput(f"the temperature is {temperature:g}; it must be above 0 (1 changes nothing, 2 flattens).")
    shares = [(count / sum(draws)) ** (1 / temperature) for count in draws]
    weights = [sum(draws) * share / sum(shares) / size for share, size in zip(shares, sizes, strict=True)]
    return [float(f"{weight:.6g}") for weight in weights]  # as they can be written into a recipe


def write(
    mixture: Mixture,
    target: Path,
    samples: int | None = None,
    *,
    seed: int = 0,
    split: str = "train",
    format: str = "qvl",
    container: str | None = None,
    shard: int = SAMPLES,
    max_bad: int = 0,
    fresh: bool = False,
) -> Written:
    """Write the first `samples` (default: an epoch) of the order.

    A target with a suffix is one file; any other a folder of shards of the split, with a card. Ids stay unique: with
    several sources they begin with the source's name (which also becomes `meta.dataset`), and a sample that comes again
    is called `id#2`. Pictures are not augmented. Up to `max_bad` samples that cannot be used are left out and listed as
    `convert` does it. Raises BadInput, and BadSample for one more.
    """
    one_file = target.suffix in (*SUFFIXES, *TEXT_TABLES)
    suffix = target.suffix if one_file else f".{container}" if container else suffix_for(format)
    check_target(target if one_file else target / f"train{suffix}", format)
    count = len(mixture) if samples is None else samples
    parts = [Shard(split, target.name, 0, count)] if one_file else plan(split, count, suffix, shard)
    folder, home = (target.parent, beside(target)) if one_file else (target, target)
    outputs = [folder / part.name for part in parts]
    notes = folder / (f"{target.name}.left_out" if one_file else LEFT_OUT)
    check_free(home, [*outputs, notes, *([] if one_file else [folder / card.NAME])], fresh)
    sources = [source.model_dump(mode="json", exclude_defaults=True) for source in mixture.sources]
    options = {"sources": sources, "choice": mixture.choice(), "samples": count, "seed": seed, "shard": shard}
    options |= {"split": split, "format": format, "container": suffix, "reading": mixture.reading()}
    job = Job(home, "mix", files(mixture), options, fresh)
    before = job.result is not None
    if not before:
        clear(folder, {*job.dropped} - {part.name for part in parts})
        names = labels(mixture)
        done: dict[str, dict[str, Any]] = {}
        for part in parts:
            limit = partial(leave_out, max_bad=max_bad, before=places(done.values()))
            work = partial(_write, mixture, part, folder / part.name, seed, format, names, limit)
            done[part.name] = job.step(part.name, work, folder / part.name)
        check_left_out(done.values(), max_bad)
        write_list(done.values(), notes)
        if not one_file:
            figures = {split: {name: Figures(**given) for name, given in done.items()}}
            made = f"Written by qvl-data mix from {', '.join(f'`{name}`' for name in names)} (seed {seed})."
            write_text(folder / card.NAME, card.card(target.resolve().name, figures, made))
        job.finish(done, outputs)
    check_left_out(job.result.values(), max_bad)
    return Written({folder / name: Figures(**figures) for name, figures in job.result.items()}, before)


def files(mixture: Mixture) -> list[Path]:
    """The data files of a mixture, each once."""
    return list(dict.fromkeys(file for dataset in mixture.datasets for file in dataset.files))


def labels(mixture: Mixture) -> list[str]:
    """A short name for each source: its registered name, or that of its file or folder; no two are the same."""
    names: list[str] = []
    for source in mixture.sources:
        name = Path(source.source).stem or source.source
        free = (label for label in (name, *(f"{name}-{i}" for i in range(2, len(names) + 2))) if label not in names)
        names.append(next(free))
    return names


def _write(
    mixture: Mixture, part: Shard, file: Path, seed: int, format: str, names: Sequence[str], limit: Limit
) -> dict[str, Any]:  # fmt: skip
    """Write one shard; its figures as JSON. What cannot be used goes to `limit`, which raises it or leaves it out."""
    figures = Figures()
    with open_writer(file, format) as writer:
        for position in track(part.indices, f"mix {file.name}", len(part.indices)):
            item = mixture.locate(seed, position)
            try:
                sample = _named(mixture.sample(Item(item.source, item.index)), item, names, file.suffix == ".jsonl")
                writer.write(sample)
            except BadSample as error:
                limit(figures, mixture.place(item), error)
            else:
                figures.add(sample)
    figures.bytes, figures.sha256 = file.stat().st_size, sha256(file)
    return figures.to_dict()


def _named(sample: Sample, item: Item, names: Sequence[str], beside: bool) -> Sample:
    """The sample under an id of its own; what is laid beside the file, under the name of its source."""
    changes: dict[str, Any] = {}
    again = f"#{item.pass_number + 1}" if item.pass_number else ""
    if len(names) > 1:
        name = names[item.source]
        changes = {"id": f"{name}/{sample.id}{again}"}
        changes["meta"] = sample.meta.model_copy(update={"dataset": sample.meta.dataset or name})
        sample = embedded(sample) if beside else sample
        changes["media"] = tuple(_under(name, one, beside) for one in sample.media)
    elif again:
        changes = {"id": f"{sample.id}{again}"}
    return sample.model_copy(update=changes) if changes else sample


def _under(name: str, media: Media, beside: bool) -> Media:
    """A picture or video that is laid into the folder, so that those of several sources do not meet there."""
    laid = beside if media.bytes is not None else media.kind == "video" and not is_absolute(media.path or "")
    path = media.origin or media.path
    return media.model_copy(update={"origin": f"{name}/{path}"}) if laid and path else media
