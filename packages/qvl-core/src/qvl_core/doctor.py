"""`doctor`: what this machine has, what a package needs, and the line that installs what is missing.

Versions are read from the installed metadata, so nothing is imported; only the devices need torch, which is asked in
a process of its own, so that even an installation that crashes is a sentence.
"""

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is empty when nothing is to be done."""

    section: str
    name: str
    value: str
    fix: str = ""


def doctor(package: str, *, as_json: bool = False) -> str:
    """The report for `package` (its import name, such as qvl_sft), as text or as JSON."""
    found = list(examine(package.replace("_", "-")))
    if as_json:
        return json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False)
    names = max(len(one.name) for one in found)
    values = max((len(one.value) for one in found if one.fix), default=0)
    lines: list[str] = []
    for finding in found:
        if finding.section not in lines:
            lines += ["", finding.section]
        value = f"{finding.value:{values}}  {finding.fix}" if finding.fix else finding.value
        lines.append(f"  {finding.name:{names}}  {value}")
    return "\n".join(lines[1:])


def examine(distribution: str) -> Iterator[Finding]:
    """Everything the report says, in its order."""
    yield Finding("Machine", "system", platform.platform())
    yield Finding("Machine", "python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("Machine", "processors", str(_processors()))
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding("Machine", "threads", f"OMP_NUM_THREADS={threads}" if threads else "all (OMP_NUM_THREADS is not set)")
    yield Finding("Machine", "memory", _memory())
    yield Finding("Machine", "disk", f"{shutil.disk_usage(Path.cwd()).free / GIB:.0f} GiB free here")
    yield from _devices()
    yield from _libraries(distribution)


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    total = _total_memory()
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's share
    if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
        total = min(total or int(text), int(text))
    return f"{total / GIB:.1f} GiB" if total else "unknown"


def _total_memory() -> int:
    if sys.platform == "win32":

        class Status(ctypes.Structure):  # MEMORYSTATUSEX
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
                (name, ctypes.c_ulonglong)
                for name in ("total", "free", "page", "page_free", "virtual", "virtual_free", "extended")
            ]

        status = Status(length=ctypes.sizeof(Status))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.total)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _devices() -> Iterator[Finding]:
    """Devices and attention kernels, as torch sees them from a process of its own."""
    if _version("torch") is None:
        return
    try:
        probe = subprocess.run([sys.executable, "-m", "qvl_core.doctor"], capture_output=True, text=True, timeout=300)
        seen = json.loads(probe.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        fix = f'uv pip install --reinstall torch; `{Path(sys.executable).name} -c "import torch"` shows what is wrong'
        yield Finding("Devices", "torch", "is installed but does not start", fix)
        return
    for name, value in seen["devices"].items():
        yield Finding("Devices", name, value)
    varlen = "varlen kernels of torch" if seen["varlen"] else "one SDPA call per document length (no CUDA kernels)"
    yield Finding("Attention", "packed", varlen)
    flash = _version("flash-attn")
    yield Finding("Attention", "flash-attn", flash or "not installed, not needed")


def probe() -> dict[str, Any]:
    """What torch sees; runs in the process that `_devices` starts."""
    import torch

    devices: dict[str, str] = {}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        kinds = "bf16" if device.major >= 8 else "fp16, no bf16"
        devices[f"cuda:{index}"] = f"{device.name}, {device.total_memory / GIB:.0f} GiB, {kinds}"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU (runs are on the CPU)"
    devices["cpu"] = f"{torch.get_num_threads()} threads"
    varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    return {"devices": devices, "varlen": varlen and torch.cuda.is_available()}


def _libraries(distribution: str) -> Iterator[Finding]:
    """Every library that the package needs, and those that its extras would add."""
    needed, optional = requirements(distribution)
    for requirement, source in needed.items():
        yield _library("Libraries", Requirement(requirement), source)
    for requirement, source in optional.items():
        if requirement not in needed:
            yield _library("Extras", Requirement(requirement), source)


def _library(section: str, requirement: Requirement, source: str) -> Finding:
    have = _version(requirement.name)
    floor = str(requirement.specifier)
    if have is None:
        value = f"missing, {floor} needed" if section == "Libraries" else "not installed"
        return Finding(section, requirement.name, value, f'uv pip install "{source}"')
    if not requirement.specifier.contains(have, prereleases=True):
        fix = f'uv pip install --upgrade "{requirement.name}{floor}"'
        return Finding(section, requirement.name, f"{have}, {floor} needed", fix)
    return Finding(section, requirement.name, have)


def requirements(distribution: str) -> tuple[dict[str, str], dict[str, str]]:
    """The libraries of a package and of its qvl siblings, and those of extras that it does not ask for.

    Both map a requirement (`torch>=2.11`) to what installs it (`qvl-core[train]`).
    """
    needed: dict[str, str] = {}
    optional: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()

    def visit(name: str, extras: frozenset[str]) -> None:
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            extra = _extra_of(requirement)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue  # another system or Python
            asked = not extra or extra in extras
            if requirement.name.startswith("qvl-") and asked:
                key = (requirement.name, ",".join(sorted(requirement.extras)))
                if key not in seen and _version(requirement.name) is not None:
                    seen.add(key)
                    visit(requirement.name, frozenset(requirement.extras))
            (needed if asked else optional).setdefault(
                f"{requirement.name}{requirement.specifier}", f"{name}[{extra}]" if extra else name
            )

    visit(distribution, frozenset())
    return needed, optional


def _extra_of(requirement: Requirement) -> str:
    """The extra that a requirement belongs to, or nothing."""
    text = str(requirement.marker or "")
    return text.split('extra == "')[1].split('"')[0] if 'extra == "' in text else ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(probe()))
