"""Removing duplicates: samples that are the same, or whose pictures look the same.

Two samples are compared by what they say and show (`compare="sample"`), or by one of these alone. What they say must be
equal; their pictures must be equal as files or, with `perceptual`, look alike: `hashing.phash` of each may differ in so
many bits. Of a data set folder all splits are cleaned together: what stands in test or validation is removed from the
others, never the other way round.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qvl_core.errors import BadInput, first_line

from ..dataset import Dataset
from ..job import NAME as JOURNAL
from ..job import Job, complete
from ..progress import track
from ..shards import Shard, plan
from ..walk import check_outside, inputs, open_split, open_splits, said
from ..writers import open_writer
from .near import Cosine, Floats, Ints, keep_first
from .prints import PRINTS, Compare, Fingerprint, all_prints, same

_FIRST = ("test", "validation", "val", "dev")  # splits that lose nothing to the others
DUPLICATES = "duplicates.jsonl"


@dataclass(frozen=True)
class Part:
    """One file or split; `written` unless it is only compared with."""

    name: str
    data: Dataset
    written: bool = True


def dedup(
    source: str | Path,
    out: Path,
    *,
    compare: Compare = "sample",
    perceptual: int | None = None,
    similar: float | None = None,
    embeddings: Path | None = None,
    cosine: float = 0.95,
    against: Sequence[str | Path] = (),
    keep: Literal["first", "largest"] = "first",
    split: str | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    media_root: Path | None = None,
    allow_root: Sequence[Path] = (),
    workers: int = 1,
    dry_run: bool = False,
    fresh: bool = False,
) -> dict[str, Any]:
    """Write `source` without its duplicates into the folder `out`, and `duplicates.jsonl`, which tells what went where.

    compare     what makes two samples the same: `sample` (text and pictures), `pictures`, or `text`
    perceptual  bits of 64 in which the hashes of two pictures may differ; None: pictures must be equal as files
    similar     with `text`: share of their runs of 5 characters that two texts must have in common, from 0.5 to 1
    embeddings  .npy file of vectors (N, D), one for each sample in order, compared by cosine instead of everything else
    against     files that are only compared with: what stands there is removed from `source`
    keep        which of the same samples stays: the `first`, or that with the `largest` pictures
    workers     processes that open pictures; the result is the same for every number
    dry_run     write nothing

    Returns `samples`, `removed` (by split) and `groups`. A killed run goes on where it was; a finished one is left.
    Raises BadInput; BadSample for a picture that cannot be opened (`qvl-data validate --fix-to` first).
    """
    parts = _parts(source, split, against, format, columns, media_root, allow_root)
    options = {
        "compare": compare, "perceptual": perceptual, "similar": similar, "embeddings": str(embeddings or ""),
        "cosine": cosine, "against": [[str(path), said(path)] for path in against], "keep": keep, "split": split,
        "format": format, "columns": dict(columns or {}), "media_root": str(media_root or ""),
        "allow_root": [str(folder) for folder in allow_root], **said(source),
    }  # fmt: skip
    if embeddings is not None and len(parts) > 1:
        raise BadInput("--embeddings belong to one file; name one --split, and leave --against away.")
    if similar is not None and (compare != "text" or perceptual is not None):
        raise BadInput("--similar compares texts alone; add --compare text, and leave --perceptual away.")

    def decide(prints: Callable[[], Job]) -> tuple[Ints, Floats]:
        if embeddings is not None:
            return _by_cosine(parts[0].data, embeddings, cosine)
        sets = {str(number): part.data for number, part in enumerate(parts)}
        fingerprint = Fingerprint(sets, compare, perceptual is not None, keep == "largest", similar is not None)
        found = all_prints(fingerprint, prints(), workers)
        return same(found, _order(parts, found.pixels), perceptual, similar)

    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            return _summary(parts, decide(partial(Job, Path(folder), "fingerprints"))[0])
    _check_place(out, source)
    watched = [path for read in (source, *against) for path in inputs(read)] + ([embeddings] if embeddings else [])
    job = Job(out, "dedup", watched, options, fresh)
    if job.result is None:
        prints = partial(Job, out / PRINTS, "fingerprints", watched, options, fresh, scratch=True)
        summary = job.step("decide", lambda: _decided(parts, out, *decide(prints)))
        files = [file for part in parts if part.written for file in _write(part, out, job)]
        shutil.rmtree(out / PRINTS, ignore_errors=True)
        job.finish(summary, [out / DUPLICATES, *files])
    result: dict[str, Any] = job.result
    return result


def _check_place(out: Path, source: str | Path) -> None:
    """Never write over data. Raises BadInput."""
    ours = (out / JOURNAL).is_file() or (out.is_dir() and all(path.name.startswith(".") for path in out.iterdir()))
    if out.exists() and not ours:
        raise BadInput(f"{out}: holds something else already; choose a new folder.")
    check_outside(out, source)


def _parts(
    source: str | Path, split: str | None, against: Sequence[str | Path], format: str | None,
    columns: Mapping[str, str] | None, media_root: Path | None, allow_root: Sequence[Path],
) -> list[Part]:  # fmt: skip
    """What is compared, what is preferred first."""
    reading: dict[str, Any] = {
        "format": format, "columns": columns, "media_root": media_root, "allow_root": tuple(allow_root)
    }  # fmt: skip
    sets, broken = open_splits(source, split, **reading)
    if broken:
        raise broken[0]
    names = [*(name for name in _FIRST if name in sets), *(name for name in sets if name not in _FIRST)]
    others = (open_split(path, **reading) for path in against)
    return [
        *(Part(data.file.stem, data, False) for data in others),
        *(Part(name, sets[name], True) for name in names),
    ]


def _order(parts: Sequence[Part], pixels: Ints) -> Ints:
    """Rows in order of preference: by part, then by size where it is known, then as they stand."""
    rank = np.repeat(np.arange(len(parts)), [len(part.data) for part in parts])
    return np.lexsort((np.arange(len(rank)), -pixels, rank)).astype(np.int64)


def _by_cosine(data: Dataset, file: Path, cosine: float) -> tuple[Ints, Floats]:
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{file}: no readable .npy file of vectors ({first_line(error)}).") from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(data):
        found = f"{vectors.dtype} of shape {vectors.shape}"
        raise BadInput(f"{file}: {found}; needs one vector of floats for each of the {len(data)} samples.")
    return keep_first(np.arange(len(data)), Cosine(vectors, cosine))


def _places(parts: Sequence[Part]) -> tuple[Ints, Ints]:
    """Part and index of every row."""
    lengths = [len(part.data) for part in parts]
    return np.repeat(np.arange(len(parts)), lengths), np.concatenate([np.arange(length) for length in lengths])


def _gone(parts: Sequence[Part], kept: Ints) -> Ints:
    """Rows that are removed: those of parts that are written, in order."""
    part, _ = _places(parts)
    written = np.array([p.written for p in parts])
    return np.flatnonzero((kept != np.arange(len(kept))) & written[part])


def _summary(parts: Sequence[Part], kept: Ints) -> dict[str, Any]:
    part, _ = _places(parts)
    gone = _gone(parts, kept)
    names = [p.name for p in parts]
    removed = Counter(names[p] for p in part[gone].tolist())
    return {
        "samples": sum(len(p.data) for p in parts if p.written),
        "removed": {p.name: removed[p.name] for p in parts if p.written},
        "groups": len(np.unique(kept[gone])),
    }


def _decided(parts: Sequence[Part], out: Path, kept: Ints, distance: Floats) -> dict[str, Any]:
    """Write duplicates.jsonl: a line for each kept sample that others went for."""
    part, index = _places(parts)
    gone = _gone(parts, kept)
    gone = gone[np.argsort(kept[gone], kind="stable")]

    def entry(row: int) -> dict[str, Any]:
        p, i = parts[part[row]], int(index[row])
        return {"split": p.name, "index": i, "id": p.data.outline(i).id, "place": p.data.rows.place(i)}

    with complete(out / DUPLICATES) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for rows in np.split(gone, np.flatnonzero(np.diff(kept[gone])) + 1) if len(gone) else []:
            removed = [entry(row) | {"distance": round(float(distance[row]), 6)} for row in rows.tolist()]
            line = {"kept": entry(int(kept[rows[0]])), "removed": removed}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return _summary(parts, kept)


def _write(part: Part, out: Path, job: Job) -> list[Path]:
    """Write what is left of a split, shard by shard; returns its files."""
    gone = _removed(part, out)
    left = [index for index in range(len(part.data)) if index not in gone]
    shards = plan(part.name, len(left), ".parquet")
    names = {shard.name for shard in shards}
    for file in (out / f"{part.name}.parquet", *out.glob(f"{escape(part.name)}-*-of-*.parquet")):
        if file.name not in names:  # of an earlier run that is done anew
            file.unlink(missing_ok=True)
    for shard in track(shards, f"write {part.name}", len(shards)):
        job.step(f"write {shard.name}", partial(_write_shard, part.data, left, shard, out), out / shard.name)
    return [out / shard.name for shard in shards]


def _removed(part: Part, out: Path) -> set[int]:
    """Indices of what is removed from a split, as duplicates.jsonl says."""
    with (out / DUPLICATES).open(encoding="utf-8") as lines:
        removed = (entry for line in lines for entry in json.loads(line)["removed"])
        return {entry["index"] for entry in removed if entry["split"] == part.name}


def _write_shard(data: Dataset, left: Sequence[int], shard: Shard, out: Path) -> None:
    with open_writer(out / shard.name) as writer:
        for place in shard.indices:
            writer.write(data[left[place]])
