"""The work of one verb, step by step: after a kill the same command goes on, a finished one does nothing.

    job = Job(out, "validate", inputs=[data], options={"decode": True})
    if job.result is None:
        counts = [job.step(f"{start}", partial(check, start)) for start in range(0, n, 1000)]
        job.finish({"samples": n, "bad": sum(counts)})
    return job.result

Steps are recorded in `.job.jsonl`, one line each, after their files are safely on disk. A step that was cut off is done
anew: it must write files under their final name only when they are complete (`complete`), and always the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from qvl_core.errors import BadInput
from qvl_core.files import fsync_folder, write_atomic, writing

T = TypeVar("T")
NAME = ".job.jsonl"


class Job:
    """What was asked for, and which of its steps are done.

    home     folder of the journal: the output folder, or for a single output file `beside(file)`
    verb     what is done; with `inputs` and `options` it tells whether an earlier output is of the same command
    inputs   files and folders that are read: their size and time must not change until the job is finished
    options  everything else that decides what comes out (JSON)
    fresh    start over

    Raises BadInput if `home` holds the work of another command, or of this one on inputs that have changed since.
    """

    def __init__(
        self, home: Path, verb: str, inputs: Sequence[Path] = (), options: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> None:  # fmt: skip
        self.home, self.file = home, home / NAME
        asked = {"verb": verb, "inputs": [str(path) for path in inputs], "options": dict(options or {})}
        self._request = {"schema": "qvl.job/1", **asked, "seen": [_identity(path) for path in inputs]}
        self._steps: dict[str, Any] = {}
        self.result: Any = None
        """What `finish` was given, if the job is finished; else None."""
        self.dropped: list[str] = []
        """Steps of the work that `fresh` starts over: their files may have to go."""
        if fresh and self.file.is_file():
            self.dropped = _steps(self.file)
            self.file.unlink()
        self._read()

    def step(self, name: str, work: Callable[[], T]) -> T:
        """The result (JSON) of one step: as recorded, or `work()`, recorded once it is done."""
        if name not in self._steps:
            self._steps[name] = work()
            self._append({"step": name, "result": self._steps[name]})
        result: T = self._steps[name]
        return result

    def is_done(self, name: str) -> bool:
        """Whether a step is recorded."""
        return name in self._steps

    def finish(self, result: Any, outputs: Iterable[Path] = ()) -> None:
        """Everything is written: a re-run shows `result` (JSON), as long as its `outputs` are there."""
        names = [os.path.relpath(path, self.home) for path in outputs]
        self._append({"finished": result, "outputs": names})
        self.result = result

    def _read(self) -> None:
        lines = self.file.read_bytes().splitlines(keepends=True) if self.file.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):  # cut off in the middle of a line
            lines.pop()
        if not lines:
            self._start_over()
            return
        request, *records = (json.loads(line) for line in lines)
        self._same(request)
        for record in records:
            if "finished" in record:
                if not all((self.home / name).exists() for name in record["outputs"]):
                    self._start_over()
                    return
                self.result = record["finished"]
            else:
                self._steps[record["step"]] = record["result"]
        size = sum(map(len, lines))
        if size < self.file.stat().st_size:
            with writing(self.file), self.file.open("rb+") as file:
                file.truncate(size)

    def _start_over(self) -> None:
        self._steps = {}
        with writing(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
            for left in self.home.glob(f".{NAME}.*.tmp"):  # by a writer killed at the very beginning
                left.unlink()
        write_atomic(self.file, _line(self._request))

    def _same(self, request: dict[str, Any]) -> None:
        for key, what in (("verb", "verb"), ("inputs", "input"), ("options", "options")):
            if request.get(key) != self._request[key]:
                was, now = (json.dumps(asked.get(key), ensure_ascii=False) for asked in (request, self._request))
                raise BadInput(
                    f"{self.home}: holds the output of another command ({what} {was}, now {now}); choose another place"
                    f" or add --fresh."
                )
        if request["seen"] != self._request["seen"]:
            changed = next(
                path
                for path, old, new in zip(request["inputs"], request["seen"], self._request["seen"], strict=True)
                if old != new
            )
            raise BadInput(f"{self.home}: {changed} has changed since this output was begun; add --fresh to redo it.")

    def _append(self, record: dict[str, Any]) -> None:
        with writing(self.file), self.file.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())


def beside(file: Path) -> Path:
    """Where the journal of a single output file is kept."""
    return file.with_name(f".{file.name}.job")


@contextmanager
def complete(file: Path) -> Iterator[Path]:
    """A path to write to, which becomes `file`, synced, when all went well, and vanishes otherwise."""
    part = file.with_name(f".{file.name}.part")
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


def _steps(file: Path) -> list[str]:
    """Names of the steps in a journal, as far as it can be read."""
    names = []
    for line in file.read_bytes().splitlines():
        try:
            names.append(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return names


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _identity(path: Path) -> str:
    """Changes when a file changes; of a folder, when one of its files does (hidden ones apart)."""
    if path.is_file():
        status = path.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                status = Path(folder, name).stat()
                digest.update(f"{folder}/{name}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
