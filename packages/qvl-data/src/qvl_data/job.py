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
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from qvl_core.errors import BadInput
from qvl_core.files import fsync_folder, writing

T = TypeVar("T")
NAME = ".job.jsonl"


class Job:
    """What was asked for, and which of its steps are done.

    home     folder of the journal: the output folder, or for a single output file `beside(file)`
    verb     what is done; with `inputs` and `options` it tells whether an earlier output is of the same command
    inputs   files and folders that are read: their size and time must not change until the job is finished
    options  everything else that decides what comes out (JSON)
    fresh    start over
    first    called before anything is written, unless the job is finished: it raises what is wrong with the request
    scratch  what is kept here helps this very request only: work of another one is started over

    Raises BadInput if `home` holds the work of another command, or of this one on inputs that have changed since, and
    while another process is at work there. A request of which nothing was done yet gives way to another one.
    """

    def __init__(
        self, home: Path, verb: str, inputs: Sequence[Path] = (), options: Mapping[str, Any] | None = None,
        fresh: bool = False, *, first: Callable[[], object] = lambda: None, scratch: bool = False,
    ) -> None:  # fmt: skip
        self.home, self.file = home, home / NAME
        self._scratch = scratch
        asked = {"verb": verb, "inputs": [str(path) for path in inputs], "options": dict(options or {})}
        request = {"schema": "qvl.job/1", **asked, "seen": [_identity(path) for path in inputs]}
        self._request: dict[str, Any] = json.loads(_line(request))  # as it is read again: tuples are lists
        self._steps: dict[str, Any] = {}
        self._gone: list[str] = []
        self.result: Any = None
        """What `finish` was given, if the job is finished; else None."""
        self.dropped: list[str] = []
        """Steps of work that was started over, which have not been done again: their files may have to go."""
        begun, _ = self._read(fresh)
        if begun and self.result is not None:
            return
        first()
        self._hold = _held(self.file)
        begun, size = self._read(fresh)  # another process may have gone on in between
        if size < self.file.stat().st_size:
            with writing(self.file):
                os.truncate(self.file, size)
        if not begun:
            self._append(self._request)
            self._read()
        elif self._gone:
            self._append({"gone": self._gone})

    def step(self, name: str, work: Callable[[], T], output: Path | None = None) -> T:
        """The result (JSON) of one step: as recorded, or `work()`, recorded once it is done.

        A step whose `output` is gone when the job is opened again is done anew.
        """
        if name not in self._steps:
            self._steps[name] = work()
            made = {} if output is None else {"output": self._name(output)}
            self._append({"step": name, "result": self._steps[name], **made})
        result: T = self._steps[name]
        return result

    def is_done(self, name: str) -> bool:
        """Whether a step is recorded."""
        return name in self._steps

    def finish(self, result: Any, outputs: Iterable[Path] = ()) -> None:
        """Everything is written: a re-run shows `result` (JSON), as long as its `outputs` are there."""
        self._append({"finished": result, "outputs": [self._name(path) for path in outputs]})
        self.result = result

    def _read(self, fresh: bool = False) -> tuple[bool, int]:
        """What the journal says; whether it holds work of this request to go on with, and its size in whole lines.

        The last request counts; it stands before its steps. What was started over is remembered as `dropped`.
        """
        self._steps, self.result, self.dropped = {}, None, []
        request: dict[str, Any] | None = None
        made_by: dict[str, str] = {}
        ended: list[str] = []
        size = 0
        begun = False
        for record, end in _records(self.file, tolerant=fresh or self._scratch):
            size, begun = end, "schema" not in record
            if "schema" in record:
                self._steps, self.result, request, made_by, ended = {}, None, record, {}, []
            elif "finished" in record:
                self.result, ended = record["finished"], record["outputs"]
            elif "gone" in record:
                self._forget(record["gone"], made_by)
                ended = []
            else:
                self._steps[record["step"]] = record["result"]
                self.dropped.append(record["step"])
                if "output" in record:
                    made_by[record["output"]] = record["step"]
        if request is not None and begun and not (fresh or self._scratch):
            self._same(request)
        self._gone = [name for name in dict.fromkeys([*ended, *made_by]) if not (self.home / name).exists()]
        self._forget(self._gone, made_by)
        self.dropped = [name for name in dict.fromkeys(self.dropped) if name not in self._steps]
        return request == self._request and not fresh and made_by.keys() >= set(self._gone), size

    def _forget(self, gone: list[str], made_by: dict[str, str]) -> None:
        """Outputs are no longer there: their steps are open again."""
        for name in gone:
            self._steps.pop(made_by.get(name, ""), None)
            self.result = None

    def _same(self, request: dict[str, Any]) -> None:
        for key, what in (("verb", "verb"), ("inputs", "input"), ("options", "options")):
            if request.get(key) != self._request[key]:
                was, now = (
                    json.dumps(said, ensure_ascii=False) for said in _apart(request.get(key), self._request[key])
                )
                raise BadInput(
                    f"{_place(self.home)}: holds the output of another command ({what} {was}, now {now}); choose"
                    f" another place or add --fresh."
                )
        if request.get("seen") != self._request["seen"]:
            before = request.get("seen") or []
            pairs = zip_longest(request["inputs"], before, self._request["seen"])
            changed = next(path for path, old, new in pairs if old != new)
            raise BadInput(
                f"{_place(self.home)}: {changed} has changed since this output was begun; add --fresh to redo it."
            )

    def _name(self, output: Path) -> str:
        return Path(os.path.relpath(output, self.home)).as_posix()

    def _append(self, record: dict[str, Any]) -> None:
        with writing(self.file), self.file.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())


class _Hold:
    """The journal of a process that is at work; let go with the last job that refers to it, or by the end, however
    sudden, of the process."""

    def __init__(self, file: Path) -> None:
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, descriptor)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError):
            raise BadInput(f"{_place(file.parent)}: another process is writing here; wait until it is done.") from None
        except OSError:  # a file system without locks
            pass


_holds: "weakref.WeakValueDictionary[Path, _Hold]" = weakref.WeakValueDictionary()


def _held(file: Path) -> _Hold:
    """The hold on a journal, the same for all jobs of this process. Raises BadInput while another process has it."""
    key = file.absolute()
    hold = _holds.get(key) or _Hold(file)
    _holds[key] = hold
    return hold


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # behind the content: what is locked there cannot be read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def beside(file: Path) -> Path:
    """Where the journal of a single output file is kept."""
    return file.with_name(f".{file.name}.job")


def _place(home: Path) -> Path:
    """What the user calls the output whose journal is in `home`."""
    if home.name.startswith("."):
        return home.with_name(home.name[1:-4]) if home.name.endswith(".job") else home.parent
    return home


def check_free(home: Path, files: Iterable[Path], fresh: bool) -> None:
    """Raise BadInput if one of the files to write is there, and no earlier run whose journal is in `home` wrote it."""
    if fresh or (home / NAME).exists():
        return
    for file in files:
        if file.exists():
            raise BadInput(f"{file}: is already there; remove it, choose another name, or add --fresh.")


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


def result_of(home: Path) -> Any:
    """What the job whose journal is in `home` was finished with; None if it was not."""
    result = None
    for record, _ in _records(home / NAME, tolerant=False):
        result = record.get("finished")
    return result


def write_text(file: Path, text: str) -> None:
    """Write a whole file as UTF-8; what a kill leaves, the next run writes over."""
    with complete(file) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def clear(folder: Path, names: Iterable[str]) -> None:
    """Remove files of work that was started over, and what a kill left of others. Names of other folders are none."""
    for left in (*(folder / name for name in names if Path(name).name == name), *folder.glob(".*.part")):
        with writing(left):
            left.unlink(missing_ok=True)


def _records(file: Path, tolerant: bool) -> Iterator[tuple[dict[str, Any], int]]:
    """The records of a journal, and where each ends; what a kill cut off at the end is left out.

    Raises BadInput for what is no record; a tolerant reader stops there.
    """
    size = 0
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True) if file.is_file() else (), 1):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
            known = isinstance(record, dict) and (
                {"schema", "inputs"} <= record.keys()
                or {"finished", "outputs"} <= record.keys()
                or {"step", "result"} <= record.keys()
                or "gone" in record
            )
        except (ValueError, RecursionError):
            known = False
        if not known and tolerant:
            return
        if not known:
            raise BadInput(f"{file}:{number}: is no line of a journal of qvl-data; add --fresh to start over.")
        size += len(line)
        yield record, size


def _apart(was: Any, now: Any) -> tuple[Any, Any]:
    """Where two objects differ; two other values as they are."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return was, now
    keys = [key for key in (*was, *now) if was.get(key) != now.get(key)]
    return tuple({key: asked[key] for key in keys if key in asked} for asked in (was, now))  # type: ignore[return-value]


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _identity(path: Path) -> str:
    """Changes when a file changes; of a folder, when one of its files does (hidden ones apart)."""
    if path.is_file():
        return _stamp(path)
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                file = Path(folder, name)
                digest.update(f"{file.as_posix()}:{_stamp(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stamp(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:  # a link to nothing
        return "none"
    return f"{status.st_size}:{status.st_mtime_ns}"
