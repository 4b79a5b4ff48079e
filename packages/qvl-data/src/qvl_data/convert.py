"""Writing data sets: between formats and containers, one sample at a time.

A Parquet file carries its pictures inside. A JSONL file names them, so they are laid beside it: under their own
relative path, embedded ones under the path they came from or `media/<hash>`. A file gets its name once it is complete.
"""

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.files import fsync_folder, writing

from .dataset import SUFFIXES, Dataset, splits
from .errors import BadSample, placed
from .formats import get_format
from .media import Opener, data_url, image_size, is_absolute, locate, media_name, read_bytes
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
    (format qvl) or JSONL files. Raises BadInput; then the file that was being written is not there (pictures laid
    beside it may be).
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
    with _complete(file) as part, Writer(part) as writer:
        for sample in samples:
            with placed(sample):
                media = tuple(_embedded(media, sample.opener) for media in sample.media)
            writer.write(sample.model_copy(update={"media": media}))
            count += 1
    return count


def _write_jsonl(samples: Iterable[Sample], file: Path, format: str) -> int:
    form = get_format(format)
    count = 0
    with _complete(file) as part, part.open("w", encoding="utf-8", newline="\n") as out:
        for sample in samples:
            with placed(sample):
                media = tuple(_beside(media, sample.opener, file.parent) for media in sample.media)
                row = form.write(sample.model_copy(update={"media": media}))
            out.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


@contextmanager
def _complete(file: Path) -> Iterator[Path]:
    """A file to write into that gets its name when all went well, and vanishes otherwise."""
    part = file.with_name(file.name + ".part")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        fsync_folder(file.parent)


def _embedded(media: Media, opener: Opener) -> Media:
    """A picture with its bytes inside and its size stated; videos and remote addresses stay where they are."""
    remote = media.url is not None and media.url.lower().startswith(("http://", "https://"))
    if media.kind != "image" or remote:
        return media
    if media.bytes is not None:
        return _sized(media)
    fields: dict[str, Any] = {"path": None, "url": None, "bytes": read_bytes(media, opener.root, opener.allow_root)}
    if media.url is not None and media.url.startswith("data:"):
        fields["mime"] = media.mime or data_url(media.url)[0]
    else:
        fields["origin"] = media.origin or media_name(media)
    return _sized(media.model_copy(update=fields))


def _sized(media: Media) -> Media:
    """An embedded picture with its width and height, so that lengths are known without reading it."""
    if media.width and media.height:
        return media
    try:
        width, height = image_size(media)
    except BadSample:  # told by whoever opens it
        return media
    return media.model_copy(update={"width": width, "height": height})


def _beside(media: Media, opener: Opener, folder: Path) -> Media:
    """A picture or video as a file below `folder`; what has an address or an absolute path stays where it is."""
    if media.bytes is not None:
        path = _path_of(media, media.bytes)
        _lay(media.bytes, folder / path)
        origin = None if media.origin == path else media.origin
        return media.model_copy(update={"path": path, "bytes": None, "origin": origin})
    if media.path is not None and not is_absolute(media.path):
        _lay(locate(media.path, opener.root, opener.allow_root), folder / media.path)
    return media


def _lay(content: bytes | Path, target: Path) -> None:
    """Put a file (its bytes, or a copy) where `target` says, unless it is there already. Raises BadInput."""
    if target.exists():
        same = filecmp.cmp(content, target, False) if isinstance(content, Path) else target.read_bytes() == content
        if not same:
            raise BadInput(f"{target}: another file of this name is already there; write into an empty folder.")
        return
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, part)
    else:
        part.write_bytes(content)
    os.replace(part, target)


def _path_of(media: Media, content: bytes) -> str:
    """Where an embedded picture goes: where it came from if that is a clean relative path, else by its content."""
    if media.origin is not None and not is_absolute(media.origin) and "://" not in media.origin:
        try:
            check_path(media.origin)
            return media.origin
        except ValueError:
            pass
    return f"media/{hashlib.sha256(content).hexdigest()[:32]}{_ENDINGS.get(media.mime or '', '.png')}"
