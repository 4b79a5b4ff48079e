"""What the Hugging Face library `datasets` left on disk, or brings from the hub: in the end always Arrow files.

A folder that `save_to_disk` wrote is read without the library. A name on the hub (`owner/name`, `owner/name:config`)
needs the extra `hub`; the library downloads into its cache and answers from it later, without network if
HF_HUB_OFFLINE=1. Code that comes with a dataset is never run, and pictures stay as they are (bytes).
"""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from qvl_core.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.+-]+)?", re.ASCII)


def saved_splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The Arrow files of a folder that `save_to_disk` wrote, by split; empty if it is none. Raises BadInput."""
    if (listing := folder / "dataset_dict.json").is_file():
        names = _read(listing).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) and _plain(name) for name in names):
            raise BadInput(f'{listing}: has no list "splits" of folder names; save the dataset again.')
        return {name: _saved_files(folder / name) for name in names}
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        split = _read(folder / "state.json").get("_split")
        return {split if isinstance(split, str) else "train": _saved_files(folder)}
    return {}


def _saved_files(folder: Path) -> tuple[Path, ...]:
    state = folder / "state.json"
    listed = _read(state).get("_data_files")
    entries = listed if isinstance(listed, list) else [None]
    names = [str(entry.get("filename", "")) if isinstance(entry, dict) else "" for entry in entries]
    if not all(map(_plain, names)):
        raise BadInput(f'{state}: has no list "_data_files" of file names; save the dataset again.')
    files = tuple(folder / name for name in names)
    if missing := next((file for file in files if not file.is_file()), None):
        raise BadInput(f"{missing}: is missing, but {state.name} lists it; get the missing file.")
    return files


def _plain(name: str) -> bool:
    """Whether a name stays in its folder."""
    return name not in ("", ".", "..") and not re.search(r"[/\\:\0]", name)


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput(f"{file}: cannot be read as a JSON object; save the dataset again.")
    return value


def is_name(name: str) -> bool:
    """Whether a text could be the name of a dataset on the hub."""
    return _NAME.fullmatch(name) is not None


def hub_splits(name: str) -> dict[str, tuple[Path, ...]]:
    """The Arrow files of a dataset on the hub by split, brought into the cache of `datasets`. Raises BadInput."""
    try:
        import datasets
    except ImportError:
        raise BadInput(
            f'{name}: no such file or folder; a dataset of this name on the hub needs pip install "qvl-data[hub]".'
        ) from None
    path, _, config = name.partition(":")
    try:
        with _no_waiting(datasets):
            builder = datasets.load_dataset_builder(path, config or None)
            builder.download_and_prepare()
            found = builder.as_dataset()
    except Exception as error:  # of many libraries: network, login, a config that must be named, damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(f"{name}: no such file or folder, and not to be had from the hub ({reason}).") from None
    return {str(split): _cached_files(name, part) for split, part in found.items()}


@contextmanager
def _no_waiting(datasets: Any) -> Iterator[None]:
    """Without network, let the libraries answer from their caches at once, instead of after minutes of trying."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or ""
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _cached_files(name: str, part: Any) -> tuple[Path, ...]:
    from .tables import ArrowRows

    files = tuple(Path(file["filename"]) for file in part.cache_files)
    if not files or sum(len(ArrowRows(file)) for file in files) != len(part):
        raise BadInput(
            f"{name}: the cache of datasets does not hold this split as it is; remove it there, and try again."
        )
    return files
