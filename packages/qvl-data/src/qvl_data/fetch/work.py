"""The work of `qvl-data fetch`: shard by shard, in order, whatever order the answers come in."""

import asyncio
import hashlib
import io
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.files import sha256, write_atomic

from .. import card
from ..dataset import Dataset
from ..errors import BadSample
from ..job import NAME, Job
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
) -> Fetched:
    """Fetch the remote media of `samples` into shards in the folder `out`, or with `retry` those that failed before.

    The same command goes on after a kill. Raises BadInput if `out` holds something else.
    """
    shards = plan(split, len(samples), f".{container}", shard)
    if not fresh and not (out / NAME).exists() and any((out / part.name).exists() for part in shards):
        raise BadInput(f"{out}: holds other data already; choose another folder, or add --fresh.")
    options = {"split": split, "container": container, "shard": shard}
    job = Job(out, "fetch", samples.files, options, fresh)
    for name in job.dropped:
        (out / name).unlink(missing_ok=True)
    if job.result is None:
        done = {part.name: job.step(part.name, partial(_fetch, samples, part, out, crowd)) for part in shards}
        failed = [entry for part in shards for entry in done[part.name]["failed"]]
        figures = {part.name: done[part.name]["figures"] for part in shards}
        _write_notes(out, split, figures, failed, samples)
        job.finish(figures, [out / part.name for part in shards])
    if retry:
        _retry(samples, {part.name: part for part in shards}, out, crowd, split, job.result)
    figures = _figures(out, job.result)
    return Fetched(sum(given["samples"] for given in figures.values()), _read_failed(out))


def _retry(
    samples: Samples, shards: Mapping[str, Shard], out: Path, crowd: Crowd, split: str, first: Mapping[str, Any]
) -> None:
    """Fetch again what failed: a shard with failures is written anew, from what it holds and what comes now."""
    number = 1
    while (job := Job(_round(out, number), "fetch --retry", (), {"round": number})).result is not None:
        number += 1
    before: dict[str, Any] = job.step("plan", lambda: {"figures": _figures(out, first), "failed": _read_failed(out)})
    figures, failed = dict(before["figures"]), []
    for name, part in shards.items():
        missing = [entry for entry in before["failed"] if entry["shard"] == name]
        if all(entry["reason"] in FINAL for entry in missing):
            failed += missing
            continue
        done = job.step(name, partial(_fetch, samples, part, out, crowd))
        figures[name] = done["figures"]
        failed += done["failed"]
    _write_notes(out, split, figures, failed, samples)
    job.finish(figures)


def _round(out: Path, number: int) -> Path:
    return out / f".retry-{number}"


def _figures(out: Path, first: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of each shard after the last retry that was finished."""
    figures, number = dict(first), 1
    while (_round(out, number) / NAME).exists():
        figures = Job(_round(out, number), "fetch --retry", (), {"round": number}).result or figures
        number += 1
    return figures


def _read_failed(out: Path) -> list[dict[str, Any]]:
    file = out / FAILED
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def _fetch(samples: Samples, part: Shard, out: Path, crowd: Crowd) -> dict[str, Any]:
    """Write one shard; its figures and failures as JSON."""
    return asyncio.run(_fetch_shard(samples, part, out, crowd))


async def _fetch_shard(samples: Samples, part: Shard, out: Path, crowd: Crowd) -> dict[str, Any]:
    known = _known(out / part.name)
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
    return {"figures": figures.to_dict(), "failed": failed}


def _known(file: Path) -> dict[str, bytes]:
    """What an earlier attempt has fetched into a shard, by URL."""
    if not file.is_file():
        return {}
    try:
        media = (media for sample in Dataset(file) for media in sample.media)
        return {item.origin: item.bytes for item in media if item.origin and item.bytes}
    except BadInput:  # no samples in it
        return {}


async def _in_order(
    samples: Samples, indices: Iterable[int], crowd: Crowd, known: Mapping[str, bytes]
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


async def _complete(samples: Samples, index: int, crowd: Crowd, known: Mapping[str, bytes]) -> Sample | dict[str, str]:
    """A sample with its remote media inside; or place, url, reason and problem."""
    place = url = ""
    try:
        sample = samples[index]
        place = sample.place
        media = list(sample.media)
        for number, item in enumerate(media):
            if item.url is not None and item.url.lower().startswith(("http://", "https://")):
                url = item.url
                body = known[url] if url in known else await crowd.fetch(url)
                media[number] = await asyncio.to_thread(_inside, item, body)
        return sample.model_copy(update={"media": tuple(media)})
    except (Failed, BadSample) as error:
        return _failure(place, url, error)


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


def _write_notes(
    out: Path, split: str, figures: Mapping[str, Any], failed: Sequence[Mapping[str, Any]], samples: Samples
) -> None:
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in failed)
    write_atomic(out / FAILED, lines)
    source = Path(samples.files[0]).name
    made = f"Fetched by qvl-data fetch from `{source}`; {len(failed)} samples are missing (failed.jsonl)."
    write_atomic(out / card.NAME, card.card(out.resolve().name, {split: _by_file(figures)}, made))


def _by_file(figures: Mapping[str, Any]) -> dict[str, Figures]:
    return {name: Figures(**given) for name, given in figures.items()}
