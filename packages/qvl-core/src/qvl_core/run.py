"""The run folder: everything one run leaves behind, at fixed names.

    recipe.yaml        resolved recipe                 metrics.jsonl   one record per log step and event
    environment.json   versions, devices, command      result.json     flat figures, schema qvl.result/1
    checkpoints/       step-000200/ ...                report.html     self-contained page
    samples/           previews made on the way        final/          the trained weights

In a run of several processes rank 0 calls `RunFolder.open`; the others say `RunFolder(path)`.
"""

import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from qvl_core.errors import BadInput
from qvl_core.files import old_name, write_atomic, writing

# Wall clock at which the process began: what it computed before this import is nearly all the time that had passed.
_BEGAN = time.monotonic() - time.process_time()

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class RunFolder:
    """Names, reads and writes the files of one run. Writes are atomic; nothing is created by naming."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def bad_samples_file(self) -> Path:
        return self.path / "bad_samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @classmethod
    def open(cls, out: Path, fresh: bool = False) -> "RunFolder":
        """Create `out`, or take up the run that is there; `fresh` first moves it aside to `<name>.old-1`, -2, ...

        Raises BadInput if `out` is a file, or holds anything but a run: other people's data is never written into.
        """
        run = cls(Path(out))
        if run.path.exists() and not run.path.is_dir():
            raise BadInput(f"{out}: is a file, not a folder; choose another --out.")
        # Hidden entries do not count: a run killed while it wrote its first file leaves one, and so do file managers.
        held = run.path.is_dir() and any(not entry.name.startswith(".") for entry in run.path.iterdir())
        if held and not run.recipe_file.is_file():
            raise BadInput(f"{out}: holds files but no recipe.yaml, so it is not a run folder; choose another --out.")
        with writing(run.path):
            if held and fresh:
                os.replace(run.path, old_name(run.path))
            run.path.mkdir(parents=True, exist_ok=True)
        return run

    def write_recipe(self, text: str) -> None:
        """Store the resolved recipe, which also marks the folder as a run."""
        write_atomic(self.recipe_file, text)

    def write_environment(self, extra: Mapping[str, Any] | None = None) -> None:
        """Record what the run runs on (see `environment`) and `extra`.

        The report shows extra["tune"], a list of {group, mode, parameters, trainable, lr}, as the tune table.
        """
        write_atomic(self.environment_file, _json({**environment(), **(extra or {})}, indent=2) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """The recorded environment; empty if there is none."""
        return _read_object(self.environment_file)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one record (with its "step") and flush it. Non-finite numbers become null."""
        with writing(self.metrics_file), self.metrics_file.open("ab") as file:
            file.write((_json(record) + "\n").encode("utf-8"))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records so far (see `read_records`)."""
        return read_records(self.metrics_file)

    def truncate_metrics(self, step: int) -> None:
        """Drop the records after `step`, the one the run resumes from (0: start again), and an unfinished last line.

        An evaluation that followed the checkpoint of `step` goes too: it is made again.
        """
        kept: list[dict[str, Any]] = []
        saved = False
        for record in self.read_metrics():
            event = record.get("event")
            saved = saved or (record["step"] == step and event in {"checkpoint", "resume"})
            if record["step"] <= step and not (saved and event == "evaluation"):
                kept.append(record)
        if self.metrics_file.is_file():
            write_atomic(self.metrics_file, "".join(_json(record) + "\n" for record in kept))

    def write_bad_samples(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """List the samples left out up to the step that the run resumes from; no file if there are none."""
        lines = [_json(entry) + "\n" for entry in entries]
        if lines:
            write_atomic(self.bad_samples_file, "".join(lines))
        else:
            self.bad_samples_file.unlink(missing_ok=True)

    def append_bad_samples(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add samples to the list."""
        with writing(self.bad_samples_file), self.bad_samples_file.open("ab") as file:
            file.write("".join(_json(entry) + "\n" for entry in entries).encode("utf-8"))

    def write_result(self, result: Mapping[str, Scalar]) -> None:
        """Store what `result()` made."""
        write_atomic(self.result_file, _json(result, indent=2) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """The stored result, or None if the run has none yet."""
        return _read_object(self.result_file) or None


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file that grows: without a last line that a killed process left unfinished.

    No file means no records. Raises BadInput on any other line that is not JSON.
    """
    if not file.is_file():
        return []
    *lines, _torn = file.read_bytes().split(b"\n")  # what follows the last newline is unfinished
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise BadInput(f"{file}:{number}: is not a JSON record; remove the line.") from error
    return records


class Spent(NamedTuple):
    """Seconds that a run has used: of processors (ended child processes included), and on the wall."""

    cpu: float = 0.0
    wall: float = 0.0


def spent(before: Spent = Spent()) -> Spent:  # noqa: B008  (immutable)
    """What this process has used since it began, plus `before`: what earlier processes of the same run had used.

    A checkpoint stores `spent(before)`; the process that resumes from it goes on with that as its own `before`.
    """
    used = os.times()
    cpu = used.user + used.system + used.children_user + used.children_system
    return Spent(before.cpu + cpu, before.wall + time.monotonic() - _BEGAN)


def result(
    package: str,
    *,
    seed: int,
    complete: bool,
    figures: Mapping[str, Scalar],
    before: Spent = Spent(),  # noqa: B008  (immutable)
) -> dict[str, Scalar]:
    """The flat record of a run, `qvl.result/1`: who made it, from what, at which cost, and its figures.

    `package` is the distribution's name (qvl-sft); accuracies among `figures` are 0..1. Call it after worker processes
    have ended, else their time is missing. Raises ValueError on a nested figure or one that takes a fixed name.
    """
    used = spent(before)
    head: dict[str, Scalar] = {
        "schema": "qvl.result/1",
        "package": package,
        "version": metadata.version(package),
        "command": command(),
        "seed": seed,
        "complete": complete,
        "seconds": round(used.cpu, 3),
        "wall_seconds": round(used.wall, 3),
    }
    if taken := head.keys() & figures.keys():
        raise ValueError(f"figures use fixed names of the result: {', '.join(sorted(taken))}")
    if nested := [name for name, value in figures.items() if not isinstance(value, str | int | float | None)]:
        raise ValueError(f"figures of a result are single values, these are not: {', '.join(nested)}")
    return {**head, **figures}


def environment() -> dict[str, Any]:
    """Versions, devices and the command, as JSON values. No environment variable is read, and secrets are blanked."""
    return {
        "schema": "qvl.environment/1",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "commit": _commit(),
        **_devices(),
        "packages": _versions(),
    }


def command() -> str:
    """The command line of this process, with values that are secrets replaced by ***."""
    program, *arguments = sys.argv or [""]
    file = Path(program)
    start = ["python", "-m", file.parent.name] if file.name == "__main__.py" else [file.name]
    return shlex.join(redact([*start, *arguments]))


_SECRET_KEY = re.compile(r"(?i)(^|[._-])(token|secret|password|api[._-]?key|access[._-]?key)$")
_SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|AKIA)[A-Za-z0-9_-]{12,}|(?<=://)[^/@\s]+(?=@)")


def redact(arguments: list[str]) -> list[str]:
    """Blank what follows the key of a secret (`--token X`, `api_key=X`), known token shapes, and `user:password@`."""
    clean = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, _ = argument.partition("=")
        if equals and _SECRET_KEY.search(key):
            clean.append(f"{key}=***")
        elif before.startswith("-") and _SECRET_KEY.search(before):
            clean.append("***")
        else:
            clean.append(_SECRET_VALUE.sub("***", argument))
    return clean


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file}: is not valid JSON ({error}); remove it and run the same command again.") from error
    if not isinstance(content, dict):
        raise BadInput(f"{file}: is not a JSON object; remove it and run the same command again.")
    return content


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _devices() -> dict[str, Any]:
    torch: Any = sys.modules.get("torch")  # a command that does not compute does not load it either
    if torch is None:
        return {}
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "devices": cuda or (["mps"] if torch.backends.mps.is_available() else ["cpu"]),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str]:
    libraries = (
        "torch",
        "torchvision",
        "transformers",
        "peft",
        "accelerate",
        "safetensors",
        "bitsandbytes",
        "diffusers",
    )
    support = ("numpy", "pillow", "pyarrow", "pydantic", "flash-attn", "kernels", "triton", "liger-kernel", "deepspeed")
    ours = sorted({name for entry in metadata.distributions() if (name := entry.name or "").startswith("qvl-")})
    versions = {}
    for name in (*ours, *libraries, *support):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """Commit of the QVL checkout this file belongs to (`-dirty` if changed); None when installed from a wheel."""
    git, here = shutil.which("git"), Path(__file__)

    def ask(*arguments: str) -> str:
        call = [git or "", "-C", str(here.parent), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    if git is None:
        return None
    try:
        ask("ls-files", "--error-unmatch", here.name)  # a wheel in someone else's repository is not ours
        return ask("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (subprocess.SubprocessError, OSError):
        return None
