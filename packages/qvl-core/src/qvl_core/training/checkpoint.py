"""Checkpoints that survive anything: written aside, fsynced, described by a manifest, renamed.

    checkpoints/step-000200/
        weights-00000.safetensors     what is trained, by name; fp32
        optimizer-00000.safetensors   AdamW's averages and step counts, `<name>/exp_avg`
        average-00000.safetensors     with `optim.ema`, the average of the weights, by name; fp32
        state.json                    step, loss scale, early stopping, bad samples, CPU seconds so far
        manifest.json                 sizes and SHA-256 of the files above, step, identity, base, its own SHA-256

Files of 2 GiB are dealt out among the processes of a run, and each writes its own: a checkpoint does not know how many
there were. Nothing here is ever unpickled. A folder without a whole manifest, or whose files differ from it, does not
count.
"""

import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qvl_core.errors import BadInput, QVLError
from qvl_core.files import fsync_folder, sha256, write_atomic, writing
from qvl_core.run import RunFolder
from qvl_core.training.world import World

SCHEMA = "qvl.checkpoint/1"
SHARD_BYTES = 2 * 2**30
ALONE = World(0, 1, torch.device("cpu"), "single")
Facts = tuple[str, int, str]  # of a file: name, bytes, SHA-256
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be whole."""

    path: Path
    step: int
    identity: dict[str, Any]
    base: str
    state: dict[str, Any]
    files: tuple[str, ...]
    digest: str  # of the manifest

    def weights(self) -> dict[str, Tensor]:
        """Trained weights by name, on the CPU."""
        return self._load("weights")

    def optimizer(self) -> dict[str, Tensor]:
        """AdamW's state by `<parameter>/<key>`, on the CPU."""
        return self._load("optimizer")

    def average(self) -> dict[str, Tensor]:
        """Averaged weights by name, on the CPU; none without `optim.ema`."""
        return self._load("average")

    def _load(self, kind: str) -> dict[str, Tensor]:
        files = [name for name in self.files if name.startswith(f"{kind}-")]
        return {name: tensor for file in files for name, tensor in load_file(self.path / file).items()}


def save(
    folder: Path,
    step: int,
    *,
    tensors: Mapping[str, Iterable[tuple[str, Tensor]]],
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    base: str,
    world: World = ALONE,
) -> Path:
    """Write `folder/step-NNNNNN` whole or not at all. All processes of `world` call it, each of which writes its files.

    `tensors` maps a kind ("weights", "optimizer", "average") to named tensors, the same in every process and drawn one
    by one: of its own, a process holds `SHARD_BYTES` while it writes as many. Raises QVLError, in all of them.
    """
    target = _path(folder, step)
    partial = folder / f".{target.name}.partial"

    def begin() -> None:
        with _saving(target, partial):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def end() -> None:
        with _saving(target, partial):
            for _, failure in shares:
                if failure is not None:
                    raise QVLError(failure)
            written = sorted(fact for facts, _ in shares for fact in facts)
            written.append(_facts(_write_json(partial / "state.json", state)))
            files = {name: {"bytes": size, "sha256": digest} for name, size, digest in written}
            manifest = {"schema": SCHEMA, "step": step, "base": base, "identity": identity, "files": files}
            _write_json(partial / "manifest.json", manifest | {"sha256": _digest(manifest)})
            fsync_folder(partial)
            _replace_folder(partial, target)

    world.on_first(begin)
    shares = world.gather(_write_own(partial, tensors, world))
    world.on_first(end)
    return target


@contextmanager
def _saving(target: Path, partial: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, QVLError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise QVLError(
            f"{target}: the checkpoint could not be written ({error}); earlier checkpoints are untouched: "
            "free some disk space and run the same command again."
        ) from error


def _write_own(
    folder: Path, tensors: Mapping[str, Iterable[tuple[str, Tensor]]], world: World
) -> tuple[list[Facts], str | None]:
    """Write this process's files, one while the next one is gathered. Gives what they are, and what went wrong first:
    all tensors are drawn even then, as the other processes do."""
    found: list[Facts] = []
    failure: str | None = None
    writing: deque[Future[Facts]] = deque()

    def settle(most: int) -> None:
        nonlocal failure
        while len(writing) > most:
            try:
                found.append(writing.popleft().result())
            except (OSError, SafetensorError) as error:
                failure = failure or str(error)

    dealt = cycle(rank == world.rank for rank in range(world.size))
    with ThreadPoolExecutor(1) as pool:
        for kind, named in tensors.items():
            for index, shard in enumerate(_shards(named, dealt)):
                if shard is not None and failure is None:
                    writing.append(pool.submit(_write_shard, folder, kind, index, shard))
                    del shard
                    settle(most=min(1, world.size - 1))
        settle(most=0)
    return found, failure


def read(path: Path) -> Checkpoint:
    """Check every byte of a checkpoint. Raises QVLError naming the file that is missing or damaged."""
    manifest = _read_manifest(path / "manifest.json")
    with ThreadPoolExecutor() as pool:  # hashing takes a core, and longer than reading
        files = manifest["files"].items()
        deque(pool.map(lambda file: _check(path / file[0], file[1]["bytes"], file[1]["sha256"]), files), maxlen=0)
    state = _read_json(path / "state.json")
    return Checkpoint(
        path=path,
        step=manifest["step"],
        identity=manifest["identity"],
        base=manifest["base"],
        state=state,
        files=tuple(manifest["files"]),
        digest=manifest["sha256"],
    )


def confirm(found: Checkpoint) -> None:
    """Make sure that this process sees the checkpoint that another one has read, without reading all of it again."""
    if _read_manifest(found.path / "manifest.json")["sha256"] != found.digest:
        raise QVLError(
            f"{found.path}: process 0 sees another checkpoint there; put the run folder on a disk that all nodes share."
        )


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and one sentence for each newer one that was skipped.

    Raises QVLError if there are checkpoints but none is whole: starting over in silence would hide the loss.
    """
    skipped: list[str] = []
    for path in sorted(_all(folder), key=_step_of, reverse=True):
        try:
            return read(path), skipped
        except QVLError as error:
            skipped.append(f"{path.name} is skipped: {error}")
    if skipped:
        raise QVLError(
            f"{folder}: no checkpoint is whole ({'; '.join(skipped)}); restore one, or start over with --fresh."
        )
    return None, skipped


def of_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of `step`. Raises QVLError if it is not whole."""
    return read(_path(folder, step))


def trained_folder(path: "str | Path", file: str) -> Path:
    """Where a trained model lies: of a run, final/, or while there is no `file` in it the newest whole checkpoint; else
    `path` itself. Raises BadInput for a run that has saved nothing yet."""
    run = RunFolder(Path(path).expanduser())
    if (run.final / file).is_file():
        return run.final
    if not run.checkpoints.is_dir():
        return run.path
    found, _ = newest(run.checkpoints)
    if found is None:
        raise BadInput(f"{run.path}: has no checkpoint yet; train on.")
    return found.path


def start(own: Path, resume: Path | None) -> tuple[Checkpoint | None, list[str]]:
    """What a run whose checkpoints lie in `own` continues from, and a sentence for each one that was skipped.

    A checkpoint named by --resume starts a new run folder; once that has newer ones of its own, the same command
    continues from them.
    """
    found, skipped = newest(own)
    if resume is None:
        return found, skipped
    given = named(resume)
    if found is None or found.step <= given.step:
        return given, skipped
    if resume.resolve().parent == own.resolve():
        raise BadInput(
            f"--resume {resume}: {found.path.name} is newer; leave --resume away to continue from it, or choose "
            "another --out to branch off."
        )
    return found, skipped


def named(path: Path) -> Checkpoint:
    """The checkpoint that a user named by --resume."""
    if not (path / "manifest.json").is_file():
        raise BadInput(
            f"--resume {path}: is no checkpoint folder (it has no manifest.json); name one like "
            "runs/x/checkpoints/step-000200, or take weights alone with model.init_from."
        )
    return read(path)


def adopt(found: Checkpoint, best: int, own: Path) -> None:
    """Bring the best checkpoint of the run that `found` belongs to into `own`, unless it is there already."""
    source, target = _path(found.path.parent, best), _path(own, best)
    if target.exists():
        return
    if not source.exists():
        raise BadInput(f"--resume {found.path}: the best checkpoint so far, {source}, is not there; put it back.")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(target):
        shutil.copytree(source, partial)
        partial.rename(target)


def prune(folder: Path, step: int, keep: int, best: int | None) -> None:
    """After a save at `step`, keep the newest `keep` checkpoints and that of step `best`.

    Those beyond `step` were damaged, else the run would have continued from them.
    """
    steps = sorted((_step_of(path) for path in _all(folder)), reverse=True)
    kept = {*[other for other in steps if other <= step][:keep], best}
    for path in (_path(folder, other) for other in steps if other not in kept):
        with suppress(OSError):  # in use by another program, on Windows: the next save tries again
            path.rename(path.with_name(f".{path.name}.removed"))  # a half-deleted folder must not look damaged
    tidy(folder)


def same_run(saved: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue another run. Names every value that differs."""
    if changes := differences(saved, wanted):
        raise BadInput(
            f"{path}: this checkpoint belongs to another run ({'; '.join(changes)}); start over with --fresh, choose "
            "another --out, or continue with the change by --allow-change."
        )


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """`optim.lr was 0.01, is 0.02`, for every value that differs."""
    before, now = dict(_flat(saved)), dict(_flat(wanted))
    return [
        f"{key} was {_show(before.get(key))}, is {_show(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]


def tidy(folder: Path) -> None:
    """Remove what interrupted saves left behind."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _check(file: Path, size: int, digest: str) -> None:
    try:
        found = file.stat().st_size
        if found != size:
            raise QVLError(f"{file}: {found} bytes, expected {size}.")
        if sha256(file) != digest:
            raise QVLError(f"{file}: content differs from the manifest's SHA-256.")
    except FileNotFoundError:
        raise QVLError(f"{file}: missing.") from None
    except OSError as error:
        raise QVLError(f"{file}: cannot be read ({error.strerror}).") from error


def _shards(tensors: Iterable[tuple[str, Tensor]], dealt: Iterator[bool]) -> Iterator[dict[str, Tensor] | None]:
    """Tensors on the CPU, file by file; None for one that is not one's own, as `dealt` says."""
    own, size, shard = next(dealt), 0, dict[str, Tensor]()
    for name, tensor in tensors:
        if size and size + tensor.nbytes > SHARD_BYTES:
            yield shard if own else None
            own, size, shard = next(dealt), 0, {}
        if own:
            shard[name] = tensor.cpu().contiguous()
        size += tensor.nbytes
    yield shard if own else None


def _write_shard(folder: Path, kind: str, index: int, shard: dict[str, Tensor]) -> Facts:
    path = folder / f"{kind}-{index:05d}.safetensors"
    save_file(shard, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    _written(path)
    return _facts(path)


def _facts(path: Path) -> Facts:
    return path.name, path.stat().st_size, sha256(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> Path:
    write_atomic(path, _text(value))
    _written(path)
    return path


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(manifest).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest vouches for all other files, and by its own digest and exact layout for itself."""
    manifest = _read_json(path)
    if manifest.get("schema") != SCHEMA:
        raise QVLError(f"{path}: schema is {manifest.get('schema')!r}, expected {SCHEMA!r}.")
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != _digest(body) or path.read_text(encoding="utf-8") != _text(manifest):
        raise QVLError(f"{path}: content differs from its own SHA-256.")
    return manifest


def _written(path: Path) -> None:
    """Called after each file of a save; the fault sweeps stall here."""


def _replace_folder(partial: Path, target: Path) -> None:
    """Rename; a folder of that name is a damaged one or an earlier save of the same step."""
    if target.exists():
        doomed = target.with_name(f".{target.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        target.rename(doomed)
    partial.rename(target)
    fsync_folder(target.parent)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QVLError(f"{path}: missing.") from None
    except (OSError, ValueError) as error:
        raise QVLError(f"{path}: not readable as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise QVLError(f"{path}: not a JSON object.")
    return value


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, f"{prefix}.{index}")
    else:
        yield prefix, value


def _show(value: Any) -> str:
    return "absent" if value is None else str(value)
