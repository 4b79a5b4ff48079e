"""The work of `qvl-data fetch`: shard by shard, in order, whatever order the answers come in."""

import asyncio
import hashlib
import io
import json
import shutil
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.files import sha256

from .. import card
from ..dataset import Dataset
from ..errors import BadSample
from ..job import NAME, Job, clear, complete, result_of, write_text
from ..media import open_image
from ..progress import track
from ..sample import Media, Sample
from ..shards import Figures, Shard, plan
from ..writers import open_writer
from .crowd import Crowd
from .http import Failed

SAMPLES = 1000
"""Samples in a shard: at most so many are fetched anew after a kill."""
FAILED = "failed.jsonl"
FINAL = ("fetch_refused", "fetch_opt_out")
"""Failures that no retry changes."""


class Samples(Protocol):
    """What is fetched for: a data set, or a list of URLs."""

    @property
    def files(self) -> Sequence[Path]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Fetched:
    """What came of a fetch."""

    samples: int
    failed: list[dict[str, Any]]
    """shard, index, place, url, reason and problem of each sample that is missing."""
    before: bool = field(default=False, compare=False)
    """Whether all had been fetched before, so that nothing was done."""


def fetch(
    samples: Samples,
    out: Path,
    crowd: Crowd,
    *,
    split: str = "train",
    container: str = "parquet",
    shard: int = SAMPLES,
    retry: bool = False,
    fresh: bool = False,
    reading: Mapping[str, Any] = MappingProxyType({}),
) -> Fetched:
    """Fetch the remote media of `samples` into shards in the folder `out`, or with `retry` those that failed before.

    reading  how the samples are read (format, columns): what else decides what comes out (JSON)

    The same command goes on after a kill. Raises BadInput if `out` holds something else.
    """
    if not split or Path(split).name != split:
        raise BadInput(f"split {split!r}: is no name of a file; choose one such as train.")
    shards = {part.name: part for part in plan(split, len(samples), f".{container}", shard)}
    files = [out / name for name in shards]
    if (
        not fresh
        and not (out / NAME).exists()
        and any(file.exists() for file in (*files, out / card.NAME, out / FAILED))
    ):
        raise BadInput(f"{out}: holds other data already; choose another folder, or add --fresh.")
    start = partial(
        Job, out, "fetch", samples.files, {"split": split, "container": container, "shard": shard, **reading}
    )
    job = start(fresh)
    if job.result is None and (rounds := list(out.glob(".retry-*"))):
        job = start(fresh=True)  # what its steps say was changed by a retry
        for folder in rounds:
            shutil.rmtree(folder)
    before = job.result is not None
    if not before:
        clear(out, job.dropped if fresh else {*job.dropped} - shards.keys())
        figures = {
            name: job.step(name, partial(_fetch, samples, part, out, crowd), out / name)
            for name, part in shards.items()
        }
        _write_notes(out, split, figures, samples)
        job.finish(figures, files)
    number, figures = _latest(out, job.result)
    if retry:
        figures, again = _retry(samples, shards, out, crowd, split, number, figures)
        before = before and not again
    if not (out / FAILED).is_file():
        _write_notes(out, split, figures, samples)
    return Fetched(sum(given["samples"] for given in figures.values()), list(_read(out / FAILED)), before)


def _retry(
    samples: Samples, shards: Mapping[str, Shard], out: Path, crowd: Crowd, split: str, number: int,
    before: Mapping[str, Any],
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """Fetch again what failed: a shard with failures is written anew, from what it holds and what comes now.

    Returns the figures of all shards, and whether there was anything to do.
    """

    def mendable() -> list[str]:
        return [name for name in shards if can_be_mended(_read(_failures(out, name)))]

    home = _round(out, number)
    if not home.exists() and not mendable():
        return dict(before), False
    job = Job(home, "fetch --retry", (), {"round": number})
    figures = dict(before)
    for name in job.step("plan", mendable):
        figures[name] = job.step(name, partial(_fetch, samples, shards[name], out, crowd))
    _write_notes(out, split, figures, samples)
    job.finish(figures)
    return figures, True


def can_be_mended(failed: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a retry may bring something: what failed without an address being asked fails again."""
    return any(entry["url"] and entry["reason"] not in FINAL for entry in failed)


def _round(out: Path, number: int) -> Path:
    return out / f".retry-{number}"


def _latest(out: Path, figures: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The number of the next retry, and the figures of each shard after the last one that was finished."""
    number = 1
    while (result := result_of(_round(out, number))) is not None:
        figures, number = result, number + 1
    return number, dict(figures)


def _failures(out: Path, name: str) -> Path:
    """Where the failures of a shard are kept."""
    return out / ".failed" / f"{name}.jsonl"


def _read(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        with file.open(encoding="utf-8", newline="\n") as lines:
            yield from map(json.loads, lines)


def _fetch(samples: Samples, part: Shard, out: Path, crowd: Crowd) -> dict[str, Any]:
    """Write one shard and the list of what failed; its figures as JSON."""
    return asyncio.run(_fetch_shard(samples, part, out, crowd))


async def _fetch_shard(samples: Samples, part: Shard, out: Path, crowd: Crowd) -> dict[str, Any]:
    known = Known(out / part.name)
    figures, failed = Figures(), []
    indices = track(part.indices, f"fetch {part.name}", len(part.indices))
    crowd = crowd.renewed()
    with open_writer(out / part.name) as writer:
        async with aclosing(_in_order(samples, indices, crowd, known)) as results:
            async for index, result in results:
                if isinstance(result, Sample):
                    try:
                        writer.write(result)
                    except BadSample as error:  # its other media, which are no addresses
                        result = _failure(result.place, "", error)
                    else:
                        figures.add(result)
                        continue
                failed.append({"shard": part.name, "index": index, **result})
    figures.bytes, figures.sha256 = (out / part.name).stat().st_size, sha256(out / part.name)
    write_text(_failures(out, part.name), _lines(failed))
    return figures.to_dict()


class Known:
    """What an earlier attempt has fetched into a shard, by URL; read when it is asked for."""

    def __init__(self, file: Path) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        if not file.is_file():
            return
        try:
            self._data = Dataset(file)
            for index in range(len(self._data)):
                for number, media in enumerate(self._data.outline(index).media):
                    if media.origin is not None and media.bytes is not None:
                        self._places[media.origin] = index, number
        except BadInput:  # no samples in it
            self._places = {}

    def get(self, url: str) -> bytes | None:
        if url not in self._places:
            return None
        index, number = self._places[url]
        return self._data[index].media[number].bytes


async def _in_order(
    samples: Samples, indices: Iterable[int], crowd: Crowd, known: Known
) -> AsyncGenerator[tuple[int, Sample | dict[str, str]]]:
    """Each sample with its media, or why it has none; a window of samples is on its way at a time."""
    waiting: deque[tuple[int, asyncio.Task[Sample | dict[str, str]]]] = deque()
    try:
        for index in indices:
            waiting.append((index, asyncio.create_task(_complete(samples, index, crowd, known))))
            if len(waiting) >= 2 * crowd.workers:
                first, task = waiting.popleft()
                yield first, await task
        while waiting:
            first, task = waiting.popleft()
            yield first, await task
    finally:
        for _, task in waiting:
            task.cancel()


async def _complete(samples: Samples, index: int, crowd: Crowd, known: Known) -> Sample | dict[str, str]:
    """A sample with its remote media inside; or place, url, reason and problem."""
    place = url = ""
    try:
        sample = samples[index]
        place = sample.place
        media = list(sample.media)
        for number, item in enumerate(media):
            if item.url is not None and item.url.lower().startswith(("http://", "https://")):
                url = item.url
                body = known.get(url) or await crowd.fetch(url)
                media[number] = await asyncio.to_thread(_inside, item, body)
        return sample.model_copy(update={"media": tuple(media)})
    except (Failed, BadSample) as error:
        return _failure(place or getattr(error, "place", ""), url, error)


def _failure(place: str, url: str, error: Failed | BadSample) -> dict[str, str]:
    return {"place": place, "url": url, "reason": error.reason, "problem": error.problem}


def _inside(media: Media, body: bytes) -> Media:
    """Media with what was fetched for it. Raises BadSample for a picture that cannot be decoded."""
    fields: dict[str, Any] = {"url": None, "bytes": body, "origin": media.url}
    fields["sha256"] = hashlib.sha256(body).hexdigest()
    inside = media.model_copy(update=fields)
    if media.kind == "video":
        return inside
    width, height = open_image(inside).size
    with Image.open(io.BytesIO(body)) as picture:
        mime = picture.get_format_mimetype()
    return inside.model_copy(update={"width": width, "height": height, "mime": mime})


def _lines(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _write_notes(out: Path, split: str, figures: Mapping[str, Any], samples: Samples) -> None:
    """The list of all that failed, and the card."""
    count = 0
    with complete(out / FAILED) as part, part.open("w", encoding="utf-8", newline="\n") as lines:
        for name in figures:
            for entry in _read(_failures(out, name)):
                lines.write(_lines([entry]))
                count += 1
    source = Path(samples.files[0]).name
    made = f"Fetched by qvl-data fetch from `{source}`; {count} samples are missing (failed.jsonl)."
    by_file = {name: Figures(**given) for name, given in figures.items()}
    write_text(out / card.NAME, card.card(out.resolve().name, {split: by_file}, made))
