"""Packing a whole data set: which samples share a row of so many tokens, decided once from their lengths.

    plan = pack(lengths, capacity=4096, seed=0)     # pure; best-fit decreasing on the histogram of lengths
    plan.save(Path("plan.parquet"))
    for samples in Packed(Plan.read(Path("plan.parquet")), Mixture("receipts")):
        ...                                         # the samples of one bin

Best-fit decreasing (Johnson 1974) places each sample, longest first, into the fullest bin that has room. All samples of
one length are placed together here, and so are bins with the same room: the cost depends on the number of different
lengths, not of samples. Needs at most 11/9 of the fewest possible bins; on the lengths of real data about 1.0001.
"""

import json
import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qvl_core.errors import BadInput

from .job import complete
from .order import mix, orders
from .sample import Sample
from .sources import Mixture

SCHEMA = "qvl.pack/1"
TooLong = Literal["error", "drop", "cut"]
STEPS = 128
"""Steps in which media are counted where their limit is larger (rounded up, so that it holds)."""

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

        count, out = len(self.samples), len(self.left_out)
        bins = np.repeat(np.arange(len(self)), np.diff(self.ends, prepend=0))
        table = pa.table(
            {
                "sample": pa.array(np.concatenate([self.samples, self.left_out]), pa.int64()),
                "bin": pa.concat_arrays([pa.array(bins, pa.int32()), pa.nulls(out, pa.int32())]),
                "tokens": pa.concat_arrays([pa.array(self.lengths, pa.int32()), pa.nulls(out, pa.int32())]),
            },
            metadata={"qvl.schema": SCHEMA, "qvl.pack": json.dumps({"capacity": self.capacity, **self.about})},
        )
        assert table.num_rows == count + out
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
            raise BadInput(f"{file}: not a readable plan ({str(error).splitlines()[0]}).") from None
        if (np.diff(bins) < 0).any() or (len(plan) and plan.loads.max() > plan.capacity):
            raise BadInput(f"{file}: a bin holds more than its {plan.capacity} tokens, or is torn apart; pack again.")
        return plan


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
    max_media  most of them in one bin; a sample over it is too long

    Raises BadInput.
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

    over = (tokens > capacity) | (weighed > most)
    if too_long == "error" and (over & (tokens > 0)).any():
        first = int(np.flatnonzero(over & (tokens > 0))[0])
        what = f"{tokens[first]} tokens" if tokens[first] > capacity else f"{weighed[first]} of at most {most} media"
        raise BadInput(
            f"sample {first}: {what} do not fit into a bin of {capacity} tokens ({int(over.sum())} samples do not); "
            "raise the capacity, or choose drop or cut for what is too long."
        )
    if too_long == "cut":
        tokens = np.where(over, capacity, tokens)
        weighed = np.where(over, most, weighed)
        over = np.zeros_like(over)
    used = np.flatnonzero((tokens > 0) & ~over)
    unit = max(1, math.ceil(most / STEPS))
    steps = np.minimum(-(-weighed[used] // unit), most // unit)  # a sample that fills a bin's media does so exactly
    bins = _best_fit(tokens[used], steps, capacity, most // unit)

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


def _best_fit(lengths: NDArray[np.int64], media: NDArray[np.int64], capacity: int, most: int) -> NDArray[np.int64]:
    """The bin (0, 1, ...) of each item, in the order of their opening.

    lengths  (N,) in 1..capacity
    media    (N,) in 0..most

    Of the bins with room for an item the one with the least room is taken; after all items of its kind that fit into
    it, it is the next one's best fit again, so that whole runs of items and bins are assigned at once.
    """
    bins = np.empty(len(lengths), np.int64)
    kind = lengths * (most + 1) + media
    size = lengths * most + media * capacity if most else lengths  # tokens and media, each as part of what a bin holds
    by_kind = np.lexsort((kind, size))[::-1] if most else np.argsort(-lengths, kind="stable")
    ends = np.flatnonzero(np.diff(kind[by_kind], append=-1)) + 1
    open_bins = _OpenBins(most)
    start = opened = 0
    for end in ends.tolist():
        items, start = by_kind[start:end], end
        length, shown = int(lengths[items[0]]), int(media[items[0]])
        while len(items):
            found = open_bins.smallest(length, shown)
            room, left = found or (capacity, most)
            each = min(room // length, left // shown) if shown else room // length
            full, rest = divmod(len(items), each)
            if found is None:
                taken = np.arange(opened, opened + full + (rest > 0))
                opened += len(taken)
            else:
                taken = open_bins.take(room, left, max(1, full))
                full, rest = min(full, len(taken)), rest if full == 0 else 0
            whole, part = taken[:full], taken[full:]
            bins[items[: full * each]] = np.repeat(whole, each)
            open_bins.put(room - each * length, left - each * shown, whole)
            if len(part):
                bins[items[full * each : full * each + rest]] = part
                open_bins.put(room - rest * length, left - rest * shown, part)
            items = items[full * each + rest :]
    return bins


class _OpenBins:
    """Bins with room, found by their tokens and media that are left."""

    def __init__(self, most: int) -> None:
        self._rooms: list[list[int]] = [[] for _ in range(most + 1)]  # by media left: tokens left, rising
        self._bins: dict[tuple[int, int], list[NDArray[np.int64]]] = defaultdict(list)

    def smallest(self, length: int, shown: int) -> tuple[int, int] | None:
        """Tokens and media left in the fullest bins that have room for an item."""
        best: tuple[int, int] | None = None
        for left in range(shown, len(self._rooms)):
            rooms = self._rooms[left]
            at = bisect_left(rooms, length)
            if at < len(rooms) and (best is None or rooms[at] < best[0]):
                best = rooms[at], left
        return best

    def take(self, room: int, left: int, count: int) -> NDArray[np.int64]:
        """At most `count` of the bins with this room."""
        kept = self._bins[room, left]
        bins = kept.pop()
        if len(bins) > count:
            kept.append(bins[count:])
        if not kept:
            del self._bins[room, left]
            self._rooms[left].remove(room)
        return bins[:count]

    def put(self, room: int, left: int, bins: NDArray[np.int64]) -> None:
        if room and len(bins):
            if (room, left) not in self._bins:
                insort(self._rooms[left], room)
            self._bins[room, left].append(bins)


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


def fingerprint(mixture: Mixture) -> str:
    """Changes with the data files, and with which of their samples are chosen."""
    return f"{mixture.fingerprint()}:{mixture.choice()}"
