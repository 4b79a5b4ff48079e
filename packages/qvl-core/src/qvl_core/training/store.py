"""Tensors on disk under the hash of what they were made of: written in shards, found by an index, read one at a time.

    store = Store.begin(folder, about, fix)             # to write: `about` decides the values; others are refused
    store.write("photos-000000", {key: tensor}, notes)  # whole or not at all
    store = Store.open(folder, about, fix)              # to read; workers are sent two names
    tensor = store.get(key)                             # None if it is not there

FOLDER/store.json                 what decides the values, and what is good to know of them
FOLDER/shards/NAME.safetensors    keys (n, 32), ends (n,), sums (n,), and values, one behind the other along dimension 0
FOLDER/index-HASH.safetensors     keys (N, 32), sorted, and places (N, 2), shard and entry; HASH is of the shards

Tensors of one store may differ in their first dimension. Files are mapped, not read: of 25 million keys a look-up
touches a few pages, which all processes share. The shards that were read from last stay mapped, and a tensor is checked
the first time that a process reads it. (What a run keeps of a frozen tower for its own later epochs, as long as there
is room, is `qwen3vl.features`.)

Shapes: n entries of a shard, N of all.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qvl_core.errors import BadInput, QVLError, first_line
from qvl_core.files import write_atomic, writing

HEAD = "store.json"
MAPPED = 4096  # shards at most, of the 65,530 files that Linux lets a process map
MAPPED_BYTES = (8 if os.name == "nt" else 4096) * 2**30  # Windows keeps room for as much in its page file
KEY = 32  # bytes of a key: a SHA-256


class _Shard(NamedTuple):
    """A mapped shard."""

    starts: list[int]  # n + 1
    sums: list[int]  # n
    values: Tensor
    checked: bytearray  # n, 1 where a tensor was compared with its sum


class _Index(NamedTuple):
    keys: NDArray[np.uint8]  # (N, 32)
    words: NDArray[np.bytes_]  # (N,), the same as `_words` has them
    places: NDArray[np.int32]  # (N, 2)
    shards: list[str]


@dataclass(frozen=True)
class Store:
    """A folder of tensors by key, as its index has it. Several processes may write, each its own shards."""

    folder: Path
    index: str

    @classmethod
    def begin(cls, folder: Path, about: Mapping[str, Any], fix: str, said: Mapping[str, Any] | None = None) -> Self:
        """A store to write into, new or taken up; `said` is what else store.json says. Raises BadInput as `open`."""
        held = folder.exists() and (not folder.is_dir() or any(one.name[0] != "." for one in folder.iterdir()))
        if not (folder / HEAD).is_file():
            if held:
                raise BadInput(f"{folder}: holds something else; {fix}.")
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            head = {"schema": "qvl.store/1", "about": dict(about), **(said or {})}
            write_atomic(folder / HEAD, json.dumps(head, indent=2) + "\n")
        return cls.open(folder, about, fix)

    @classmethod
    def open(cls, folder: Path, about: Mapping[str, Any], fix: str) -> Self:
        """The store in a folder, with all shards there are by now.

        about  what decides the values (JSON)
        fix    the end of the sentence, if the folder has values of another origin

        Raises BadInput if there is none, or it is of another origin.
        """
        try:
            known = json.loads((folder / HEAD).read_text(encoding="utf-8"))["about"]
        except (OSError, ValueError, KeyError, TypeError):
            raise BadInput(f"{folder}: has no {HEAD} that can be read; {fix}.") from None
        for name, value in about.items():
            if known.get(name) != value:
                raise BadInput(f"{folder}: was made with {name} {known.get(name)}, and this is {name} {value}; {fix}.")
        return cls(folder, "").again()

    def again(self) -> Self:
        """The store with the shards that have come since."""
        shards = self.shards()
        seen = json.dumps([[name, self._file(name).stat().st_size] for name in shards])
        index = f"index-{hashlib.sha256(seen.encode()).hexdigest()[:16]}.safetensors"
        if not (self.folder / index).is_file():
            self._write_index(self.folder / index, shards)
        return type(self)(self.folder, index)

    def shards(self) -> list[str]:
        """Names of the shards there are."""
        return sorted(file.stem for file in (self.folder / "shards").glob("[!.]*.safetensors"))

    def notes(self, name: str) -> dict[str, str]:
        """What `write` was told of a shard."""
        with self._opened(name) as shard:
            return dict(shard.metadata() or {})

    def __len__(self) -> int:
        """Keys there are."""
        return len(self._index.keys)

    def __contains__(self, key: bytes) -> bool:
        return self._find(key) is not None

    def get(self, key: bytes) -> Tensor | None:
        """The tensor of a key, in the memory that the file is mapped to: not to be written to. Raises QVLError if it is
        damaged."""
        at = self._find(key)
        if at is None:
            return None
        number, entry = self._index.places[at].tolist()
        name = self._index.shards[number]
        shard = self._shard(name)
        value = shard.values[shard.starts[entry] : shard.starts[entry + 1]]
        if not shard.checked[entry]:
            if _sum(key, value) != shard.sums[entry]:
                raise self._damaged(name, f"what it has of {key.hex()[:12]} is not what was written")
            shard.checked[entry] = 1
        return value

    def write(self, name: str, entries: Mapping[bytes, Tensor], notes: Mapping[str, str] | None = None) -> None:
        """Write the shard `name`, also one without entries; what a killed writer left of it is removed."""
        values = [value.cpu() for value in entries.values()]
        tensors = {
            "keys": torch.tensor(list(b"".join(entries)), dtype=torch.uint8).reshape(len(entries), KEY),
            "ends": torch.tensor(list(accumulate(map(len, values))), dtype=torch.int64),
            "sums": torch.tensor([_sum(*pair) for pair in zip(entries, values, strict=True)], dtype=torch.int64),
        }
        file = self._file(name)
        with writing(file):
            file.parent.mkdir(exist_ok=True)
            for leftover in file.parent.glob(f".{file.name}.*.tmp"):
                leftover.unlink(missing_ok=True)
        write_atomic(file, save(tensors | ({"values": torch.cat(values)} if values else {}), dict(notes or {})))

    def tidy(self) -> None:
        """Remove the indexes of fewer shards; who comes to read by one of them takes that of the shards there are."""
        for file in set(self.folder.glob("index-*")) - {self.folder / self.index}:
            with suppress(OSError):  # in use, on Windows
                file.unlink()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "index": self.index}

    @cached_property
    def _index(self) -> _Index:
        if not (self.folder / self.index).is_file():  # removed by `tidy` since: a later one has all its keys
            return self.again()._index
        try:
            with safe_open(self.folder / self.index, "pt") as index:
                keys, places = (index.get_tensor(name).numpy() for name in ("keys", "places"))
                return _Index(keys, _words(keys), places, json.loads(index.metadata()["shards"]))
        except (OSError, SafetensorError, ValueError) as error:
            raise QVLError(
                f"{self.folder / self.index}: is damaged ({first_line(error)}); remove it, and start again."
            ) from None

    def _write_index(self, file: Path, shards: list[str]) -> None:
        keys, places = [np.empty((0, KEY), np.uint8)], [np.empty((0, 2), np.int32)]
        for number, name in enumerate(shards):
            with self._opened(name) as shard:
                keys.append(shard.get_tensor("keys").numpy().copy())
            places.append(np.stack([np.full(len(keys[-1]), number), np.arange(len(keys[-1]))], 1, dtype=np.int32))
        every = np.concatenate(keys)
        order = np.argsort(_words(every), kind="stable")
        every = every[order]
        first = np.ones(len(every), bool)  # of equal keys the first shard's is as good as any
        first[1:] = (every[1:] != every[:-1]).any(1)
        found = {"keys": every[first], "places": np.concatenate(places)[order][first]}
        tensors = {name: torch.from_numpy(array) for name, array in found.items()}
        write_atomic(file, save(tensors, {"shards": json.dumps(shards)}))

    def _find(self, key: bytes) -> int | None:
        keys = self._index.keys
        at = int(self._index.words.searchsorted(np.array(key, f"S{KEY}")))
        return at if at < len(keys) and keys[at].tobytes() == key else None

    @cached_property
    def _mapped(self) -> dict[str, _Shard]:
        """By name, the one that was read from last behind the others."""
        return {}

    @cached_property
    def _checked(self) -> dict[tuple[str, int, int], bytearray]:
        """Of each file that was read from, by name, size and time, also when it is mapped no more."""
        return {}

    def _shard(self, name: str) -> _Shard:
        """A shard, mapped; those that were read from longest ago make room for a new one."""
        found = self._mapped.pop(name, None)
        if found is None:
            found = self._map(name)
            room = MAPPED_BYTES - sum(shard.values.nbytes for shard in self._mapped.values())
            while self._mapped and (len(self._mapped) >= MAPPED or room < found.values.nbytes):
                room += self._mapped.pop(next(iter(self._mapped))).values.nbytes
        self._mapped[name] = found
        return found

    def _map(self, name: str) -> _Shard:
        with self._opened(name) as shard:
            starts = [0, *shard.get_tensor("ends").tolist()]
            file = self._file(name).stat()
            known = self._checked.setdefault((name, file.st_size, file.st_mtime_ns), bytearray(len(starts) - 1))
            found = _Shard(starts, shard.get_tensor("sums").tolist(), shard.get_tensor("values"), known)
            if len(found.values) != starts[-1]:
                raise ValueError("it is cut off")
        return found

    def _file(self, name: str) -> Path:
        return self.folder / "shards" / f"{name}.safetensors"

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        try:
            with safe_open(self._file(name), "pt") as shard:
                yield shard
        except (OSError, SafetensorError, ValueError, IndexError, RuntimeError) as error:
            raise self._damaged(name, first_line(error)) from None

    def _damaged(self, name: str, said: str) -> QVLError:
        return QVLError(
            f"{self._file(name)}: is damaged ({said}); remove it and {self.folder / 'index-*'}, and run the command "
            "that wrote it again."
        )


def _words(keys: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """(N,) keys that numpy orders byte by byte, of (N, 32)."""
    return keys.view(f"S{KEY}").ravel()


def _sum(key: bytes, value: Tensor) -> int:
    """CRC-32 of a tensor and its key: neither another's values nor others' bits pass for it."""
    head = f"{value.dtype} {tuple(value.shape)}".encode()
    return zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data, zlib.crc32(key + head))
