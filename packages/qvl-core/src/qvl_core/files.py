"""Files that survive a crash: a reader sees the old content or the new one, never a part of it."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qvl_core.errors import BadInput, QVLError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # disk, quota, largest file
_FOLDERS_NOT_SYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # some network file systems sync no folders


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's error while `path` is written into a QVLError of one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise QVLError(
                f"{path}: no space left to write it; free some space and run the same command again."
            ) from error
        raise QVLError(f"{path}: cannot be written ({error.strerror}); choose a folder that can be.") from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) aside, sync it, and rename it over `path`.

    Raises QVLError if the disk is full or refuses; then what was at `path` is untouched and nothing is left beside it.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # hidden: a killed writer's leftover is never read
    with writing(path):
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


@contextmanager
def new_folder(folder: Path, fresh: bool = False) -> Iterator[Path]:
    """A folder to write into that gets its name when all went well, and vanishes otherwise.

    Raises BadInput if `folder` is there already, unless it is empty; `fresh` moves it out of the way then.
    """
    if folder.exists() and not (folder.is_dir() and (fresh or not any(folder.iterdir()))):
        raise BadInput(f"{folder}: is already there; choose a new folder.")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed writer left
    try:
        with writing(folder):
            aside.mkdir(parents=True)
        yield aside
        with writing(folder):
            if folder.is_dir() and any(folder.iterdir()):
                folder.rename(old_name(folder))
            elif folder.is_dir():
                folder.rmdir()
            aside.rename(folder)
            fsync_folder(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def old_name(path: Path) -> Path:
    """Where `path` is moved to make room: `<name>.old-1`, -2, ..., the first that is free."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return aside


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where the operating system can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _FOLDERS_NOT_SYNCED:
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
