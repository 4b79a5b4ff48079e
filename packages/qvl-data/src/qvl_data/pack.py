"""Packing a whole data set: which samples share a row of so many tokens, decided once from their lengths.

    plan = pack(lengths, capacity=4096, seed=0)     # pure; best-fit decreasing on the histogram of lengths
    plan.save(Path("plan.parquet"))
    for samples in Packed(Plan.read(Path("plan.parquet")), Mixture("receipts")):
        ...                                         # the samples of one bin

The samples are numbered as `Mixture.items` lists them. How they are placed stands in `qvl_data.bins`.
"""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qvl_core.errors import BadInput, first_line

from .bins import best_fit
from .errors import BadSample
from .job import Job, beside, check_free, complete
from .mix import files
from .order import mix, orders
from .progress import track
from .sample import Sample
from .sources import Mixture

SCHEMA = "qvl.pack/1"
TooLong = Literal["error", "drop", "cut"]
STEPS = 128
"""Steps in which media are counted where their limit is larger (rounded up, so that it holds)."""

LENGTHS = "lengths"
"""Folder of the measures of a work that is not finished."""

CHUNK = 2000
"""Samples that are measured between two records of the journal."""

_BINS = 5  # what the random order of bins is about


@dataclass(frozen=True, eq=False)
class Plan:
    """Which samples go into which bin.

    capacity  tokens that a bin holds at most
    samples   (N,) numbers of the packed samples, bin after bin, rising within a bin
    lengths   (N,) tokens that each of them takes
    ends      (B,) place in `samples` at which each bin ends
    left_out  (L,) numbers of the samples in no bin: of length 0 (they cannot be used), or over-long
    about     what the plan was made from and how (JSON)
    """

    capacity: int
    samples: NDArray[np.int64]
    lengths: NDArray[np.int64]
    ends: NDArray[np.int64]
    left_out: NDArray[np.int64]
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Bins."""
        return len(self.ends)

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """The numbers of the samples in one bin."""
        if not 0 <= number < len(self):
            raise IndexError(f"bin {number} of {len(self)}")
        return self.samples[self.ends[number - 1] if number else 0 : self.ends[number]]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[number] for number in range(len(self)))

    @property
    def loads(self) -> NDArray[np.int64]:
        """(B,) tokens in each bin."""
        return np.diff(np.concatenate([[0], np.cumsum(self.lengths)])[np.concatenate([[0], self.ends])])

    @property
    def fill(self) -> float:
        """Part of the bins' tokens that samples take."""
        return float(self.lengths.sum() / (len(self) * self.capacity)) if len(self) else 0.0

    @property
    def least(self) -> int:
        """Bins below which nothing can be packed: all tokens over the capacity."""
        return math.ceil(int(self.lengths.sum()) / self.capacity)

    def save(self, file: Path) -> None:
        """Write Parquet with a row for each sample: its number, its bin (null: left out) and its tokens."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        out = len(self.left_out)
        bins = np.repeat(np.arange(len(self)), np.diff(self.ends, prepend=0))
        table = pa.table(
            {
                "sample": pa.array(np.concatenate([self.samples, self.left_out]), pa.int64()),
                "bin": pa.concat_arrays([pa.array(bins, pa.int32()), pa.nulls(out, pa.int32())]),
                "tokens": pa.concat_arrays([pa.array(self.lengths, pa.int32()), pa.nulls(out, pa.int32())]),
            },
            metadata={"qvl.schema": SCHEMA, "qvl.pack": json.dumps({"capacity": self.capacity, **self.about})},
        )
        with complete(file) as part:
            pq.write_table(table, part, compression="zstd")

    @classmethod
    def read(cls, file: Path) -> "Plan":
        """A plan that `save` wrote. Raises BadInput."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(file)
            metadata = table.schema.metadata or {}
            if metadata.get(b"qvl.schema") != SCHEMA.encode():
                raise BadInput(f"{file}: is no plan of qvl-data pack.")
            about = json.loads(metadata[b"qvl.pack"])
            packed = table.filter(table["bin"].is_valid())
            samples, lengths, bins = (packed[name].to_numpy().astype(np.int64) for name in ("sample", "tokens", "bin"))
            left_out = table.filter(table["bin"].is_null())["sample"].to_numpy().astype(np.int64)
            plan = cls(
                about.pop("capacity"), samples, lengths, np.flatnonzero(np.diff(bins, append=-1)) + 1, left_out, about
            )
        except FileNotFoundError:
            raise BadInput(f"{file}: there is no such plan; make it with qvl-data pack.") from None
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, ValueError, OSError) as error:
            raise BadInput(f"{file}: not a readable plan ({first_line(error)}).") from None
        if (np.diff(bins) < 0).any() or (len(plan) and plan.loads.max() > plan.capacity):
            raise BadInput(f"{file}: a bin holds more than its {plan.capacity} tokens, or is torn apart; pack again.")
        return plan


class DoesNotFit(BadInput):
    """A sample is too long for a bin; `sample` is its number."""

    def __init__(self, problem: str, sample: int) -> None:
        super().__init__(problem, sample)
        self.problem, self.sample = problem, sample

    def __str__(self) -> str:
        return f"sample {self.sample}: {self.problem}"


def pack(
    lengths: ArrayLike,
    capacity: int,
    *,
    seed: int = 0,
    too_long: TooLong = "error",
    media: ArrayLike | None = None,
    max_media: int | None = None,
) -> Plan:
    """Every sample into one bin of at most `capacity` tokens; the bins in random order. Pure.

    lengths    (N,) tokens of each sample; 0: it cannot be used and is left out
    too_long   a sample over the capacity is an error, is left out (`drop`), or takes a bin of its own, into which it
               has to be cut when it is encoded (`cut`)
    media      (N,) pictures of each sample, or tokens of its pictures
    max_media  most of them in one bin; a sample over it by itself is too long (under `cut`: shares no bin with media)

    Raises BadInput, DoesNotFit among them.
    """
    tokens = _whole_numbers(lengths, "lengths")
    weighed = np.zeros_like(tokens) if media is None else _whole_numbers(media, "media")
    if len(weighed) != len(tokens):
        raise BadInput(f"{len(tokens)} lengths, but media of {len(weighed)} samples; give one of each for a sample.")
    if too_long not in get_args(TooLong):
        raise BadInput(f"too_long {too_long!r}: must be one of {', '.join(get_args(TooLong))}.")
    if capacity < 1 or (max_media is not None and max_media < 1):
        raise BadInput("the capacity and the limit of media must be at least 1.")
    if max_media is None:
        weighed, most = np.zeros_like(tokens), 0
    else:
        most = max_media

    over = ((tokens > capacity) | (weighed > most)) & (tokens > 0)
    if too_long == "error" and over.any():
        first = int(np.flatnonzero(over)[0])
        what = f"{tokens[first]} tokens" if tokens[first] > capacity else f"{weighed[first]} of at most {most} media"
        raise DoesNotFit(
            f"{what} do not fit into a bin of {capacity} tokens ({int(over.sum())} samples do not); raise the capacity,"
            " or choose drop or cut for what is too long.",
            first,
        )
    if too_long == "cut":
        tokens, weighed, over = np.minimum(tokens, capacity), np.minimum(weighed, most), np.zeros_like(over)
    used = np.flatnonzero((tokens > 0) & ~over)
    unit = max(1, math.ceil(most / STEPS))
    steps = np.minimum(-(-weighed[used] // unit), most // unit)  # a sample that fills a bin's media does so exactly
    bins = best_fit(tokens[used], steps, capacity, most // unit)

    count = int(bins.max()) + 1 if len(bins) else 0
    place = np.empty(count, np.int64)
    place[orders(mix(seed, _BINS), np.arange(count), max(1, count))] = np.arange(count)
    bins = place[bins]
    by_bin = np.argsort(bins, kind="stable")
    ends = np.cumsum(np.bincount(bins, minlength=count)) if count else np.empty(0, np.int64)
    samples = used[by_bin]
    return Plan(capacity, samples, tokens[samples], ends.astype(np.int64), np.flatnonzero((tokens == 0) | over))


def _whole_numbers(values: ArrayLike, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (len(array) and (array.dtype.kind not in "iu" or array.min() < 0)):
        raise BadInput(f"the {what} must be one list of whole numbers, 0 or more.")
    return array.astype(np.int64)


class Packed:
    """A plan read back: bin after bin as lists of samples. Picklable. Raises BadInput if it is not of this data."""

    def __init__(self, plan: Plan, mixture: Mixture) -> None:
        if plan.about.get("fingerprint") != fingerprint(mixture):
            raise BadInput("the plan was made from other data, or these have changed since; pack again.")
        self.plan, self.mixture = plan, mixture

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> list[Sample]:
        """The samples of one bin. Raises BadSample."""
        return [self.mixture.sample(self.mixture.item(int(sample))) for sample in self.plan[number]]

    def __iter__(self) -> Iterator[list[Sample]]:
        return (self[number] for number in range(len(self)))


@dataclass(frozen=True)
class Measures:
    """What is known of the samples of a mixture, in the order of `Mixture.items`; 0 tokens: cannot be used."""

    tokens: list[int]
    media: list[int]
    bad: list[tuple[str, str]]
    """Reason and sentence of each that cannot be used."""


def measure(mixture: Mixture, processor: Any, start: int, end: int, tokens_of_media: bool) -> Measures:
    """Tokens of samples `start` up to `end`, and how many pictures and videos they show, or tokens of those."""
    from .chat import sizes

    found = Measures([], [], [])
    for number in range(start, end):
        item = mixture.item(number)
        try:
            sample = mixture.outline(item)
            tokens, shown = sizes(sample, processor)
            if not tokens_of_media:
                shown = sum(part.media is not None for message in sample.messages for part in message.parts)
        except BadSample as error:
            tokens, shown = 0, 0
            found.bad.append((error.reason, str(error.at(mixture.place(item), error.sample_id))))
        found.tokens.append(tokens)
        found.media.append(shown)
    return found


def pack_source(
    mixture: Mixture,
    model: Path,
    out: Path,
    capacity: int,
    *,
    seed: int = 0,
    too_long: TooLong = "error",
    max_pictures: int | None = None,
    max_media_tokens: int | None = None,
    max_bad: int = 0,
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure every chosen sample with the processor of a model folder, pack, and write the plan; returns its figures.

    `before` among them: the plan was there, and nothing was done. Raises BadInput, also if more than `max_bad` samples
    cannot be used.
    """
    from .processor import open_processor

    if mixture.draws != mixture.sizes:
        raise BadInput("a plan holds every sample once; remove the weights, or write the mixture first (qvl-data mix).")
    if max_pictures is not None and max_media_tokens is not None:
        raise BadInput("limit the pictures of a bin or their tokens, not both.")
    options = {"capacity": capacity, "seed": seed, "too_long": too_long, "max_pictures": max_pictures}
    options |= {"max_media_tokens": max_media_tokens}
    asked = {
        "sources": [source.model_dump(mode="json", exclude_defaults=True) for source in mixture.sources],
        "choice": mixture.choice(),
    }
    request = asked | {"reading": mixture.reading()}
    inputs = [*files(mixture), model]
    check_free(beside(out), [out], fresh)
    job = Job(beside(out), "pack", inputs, options | request, fresh)
    before = job.result is not None
    if not before:
        by_tokens = max_media_tokens is not None
        lengths = Job(job.home / LENGTHS, "measure", inputs, request | {"by_tokens": by_tokens}, fresh, scratch=True)
        found = _measure(mixture, open_processor(model), by_tokens, lengths, max_bad, f"measure for {out.name}")
        most = max_pictures or max_media_tokens
        try:
            plan = pack(found.tokens, capacity, seed=seed, too_long=too_long, media=found.media, max_media=most)
        except DoesNotFit as error:
            raise BadInput(f"{mixture.place(mixture.item(error.sample))}: {error.problem}") from None
        about = asked | options | {"model": model.name, "fingerprint": fingerprint(mixture)}
        replace(plan, about=about).save(out)
        first = found.bad[0][1] if found.bad else ""
        bad = Counter(reason for reason, _ in found.bad)
        job.finish(figures(plan) | {"bad": dict(bad), "first_bad": first}, [out])
    shutil.rmtree(job.home / LENGTHS, ignore_errors=True)
    _check_bad(sum(job.result["bad"].values()), job.result["first_bad"], max_bad)
    return {**job.result, "before": before}


def _measure(mixture: Mixture, processor: Any, by_tokens: bool, job: Job, max_bad: int, what: str) -> Measures:
    """The measures of all samples, kept in steps of a job. Raises BadInput once more than `max_bad` are bad."""
    total = Measures([], [], [])

    def measured(start: int) -> dict[str, Any]:
        found = measure(mixture, processor, start, min(start + CHUNK, mixture.chosen), by_tokens)
        bad = [*total.bad, *found.bad]
        _check_bad(len(bad), bad[0][1] if bad else "", max_bad)  # before it is kept: it may be mended
        return asdict(found)

    starts = range(0, mixture.chosen, CHUNK)
    for start in track(starts, what, len(starts)):
        kept = Measures(**job.step(f"samples {start}", partial(measured, start)))
        total.tokens.extend(kept.tokens)
        total.media.extend(kept.media)
        total.bad.extend(kept.bad)
        _check_bad(len(total.bad), total.bad[0][1] if total.bad else "", max_bad)
    return total


def pack_lengths(
    lengths: Path,
    media: Path | None,
    out: Path,
    capacity: int,
    *,
    seed: int = 0,
    too_long: TooLong = "error",
    max_media: int | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Pack lengths (and pictures) that were counted elsewhere, in .npy files; returns the plan's figures."""
    if max_media is not None and media is None:
        raise BadInput("a limit of pictures needs their number in each sample; give --media FILE.npy.")
    inputs = [lengths] if media is None else [lengths, media]
    options = {"capacity": capacity, "seed": seed, "too_long": too_long, "max_media": max_media}
    given = [_array(file) for file in inputs]
    check_free(beside(out), [out], fresh)
    job = Job(beside(out), "pack", inputs, options, fresh)
    before = job.result is not None
    if not before:
        plan = pack(
            given[0], capacity, seed=seed, too_long=too_long, media=given[1] if media else None, max_media=max_media
        )
        replace(plan, about=options | {"lengths": lengths.name}).save(out)
        job.finish(figures(plan) | {"bad": {}}, [out])
    return {**job.result, "before": before}


def _array(file: Path) -> NDArray[Any]:
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise BadInput(f"{file}: there is no such file.") from None
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{file}: not a .npy file of numbers ({first_line(error)}).") from None
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{file}: holds several arrays; save one as .npy.")
    return array


def _check_bad(count: int, first: str, max_bad: int) -> None:
    if count > max_bad:
        raise BadInput(
            f"{count} samples cannot be used, --max-bad allows {max_bad}; mend them or raise it. The first: {first}"
        )


def figures(plan: Plan) -> dict[str, Any]:
    """What a plan comes to."""
    return {
        "samples": len(plan.samples),
        "tokens": int(plan.lengths.sum()),
        "bins": len(plan),
        "least_bins": plan.least,
        "fill": plan.fill,
        "left_out": len(plan.left_out),
    }


def fingerprint(mixture: Mixture) -> str:
    """Changes with the data files, and with which of their samples are chosen."""
    return f"{mixture.fingerprint()}:{mixture.choice()}"
