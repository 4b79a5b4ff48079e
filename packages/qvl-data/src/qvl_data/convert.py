"""Writing data sets: between formats and containers, one sample at a time.

A Parquet file carries its pictures inside. A JSONL file names them, so they are laid beside it: under their own
relative path, embedded ones under the path they came from or `media/<hash>`. A file gets its name once it is complete.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput

from .dataset import SUFFIXES, Dataset, splits
from .formats import get_format
from .media import data_url, media_name, read_bytes
from .sample import Media, Sample, check_path

_ENDINGS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif"} | {
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
}


def convert(
    source: Path,
    target: Path,
    format: str = "qvl",
    *,
    split: str | None = None,
    from_format: str | None = None,
    media_root: Path | None = None,
    allow_root: Sequence[Path] = (),
) -> dict[Path, int]:
    """Write `source` (file or dataset folder) to `target`; returns the number of samples by target file.

    The suffix of `target` decides the container. A folder with all its splits goes into a folder, as Parquet files
    (format qvl) or JSONL files. Raises BadInput; then the file that was being written is not there.
    """
    pairs = [(split, target)]
    if source.is_dir() and split is None:
        if target.suffix in SUFFIXES:
            raise BadInput(f"{source}: holds several splits; name a target folder, or one split with --split.")
        pairs = [(name, target / f"{name}{'.parquet' if format == 'qvl' else '.jsonl'}") for name in splits(source)]
    return {
        file: write_samples(Dataset(source, name, from_format, media_root, allow_root), file, format)
        for name, file in pairs
    }


def write_samples(samples: Iterable[Sample], file: Path, format: str = "qvl") -> int:
    """Write samples to a new Parquet or JSONL file; returns how many. Raises BadInput and leaves no file behind."""
    if file.exists():
        raise BadInput(f"{file}: is already there; remove it or choose another name.")
    if file.suffix == ".parquet":
        if format != "qvl":
            raise BadInput(f"{file}: Parquet holds qvl samples; for {format} name the file .jsonl.")
        return _write_parquet(samples, file)
    if file.suffix == ".jsonl":
        return _write_jsonl(samples, file, format)
    raise BadInput(f"{file}: unknown kind of file; write .parquet or .jsonl.")


def _write_parquet(samples: Iterable[Sample], file: Path) -> int:
    from .parquet import Writer

    count = 0
    with _complete(file) as part:
        writer = Writer(part)
        try:
            for sample in samples:
                writer.write(
                    sample.model_copy(update={"media": tuple(_embedded(media, sample) for media in sample.media)})
                )
                count += 1
        finally:
            writer.close()
    return count


def _write_jsonl(samples: Iterable[Sample], file: Path, format: str) -> int:
    form = get_format(format)
    count = 0
    with _complete(file) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        for sample in samples:
            beside = sample.model_copy(
                update={"media": tuple(_beside(media, sample, file.parent) for media in sample.media)}
            )
            out.write(json.dumps(form.write(beside), ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


@contextmanager
def _complete(file: Path) -> Iterator[Path]:
    """A file to write into that gets its name when all went well, and vanishes otherwise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _embedded(media: Media, sample: Sample) -> Media:
    """A picture with its bytes inside; videos and remote addresses stay where they are."""
    if media.kind != "image" or media.bytes is not None or _is_remote(media):
        return media
    content = read_bytes(media, sample.opener.root, sample.opener.allow_root)
    fields: dict[str, Any] = {"path": None, "url": None, "bytes": content}
    if media.url is not None and media.url.startswith("data:"):
        fields["mime"] = media.mime or data_url(media.url)[0]
    else:
        fields["origin"] = media.origin or media_name(media)
    return media.model_copy(update=fields)


def _beside(media: Media, sample: Sample, folder: Path) -> Media:
    """A picture or video as a file below `folder`."""
    if media.url is not None or (media.path is None and media.bytes is None):
        return media
    content = read_bytes(media, sample.opener.root, sample.opener.allow_root)
    if media.path is not None and Path(media.path).is_absolute():
        return media
    path = media.path or _path_of(media, content)
    target = folder / path
    if target.exists():
        if target.read_bytes() != content:
            raise BadInput(f"{target}: another file of this name is already there; write into an empty folder.")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return media.model_copy(
        update={"path": path, "bytes": None, "origin": None if media.origin == path else media.origin}
    )


def _path_of(media: Media, content: bytes) -> str:
    """Where an embedded picture goes: where it came from if that is a relative path, else by its content."""
    if media.origin is not None and "://" not in media.origin:
        try:
            check_path(media.origin)
        except ValueError:
            pass
        else:
            if not media.origin.startswith("/") and ":" not in media.origin:
                return media.origin
    return f"media/{hashlib.sha256(content).hexdigest()[:32]}{_ENDINGS.get(media.mime or '', '.png')}"


def _is_remote(media: Media) -> bool:
    return media.url is not None and media.url.lower().startswith(("http://", "https://"))
