"""What every result file says beside its figures: when, with which versions, on which machine."""

import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages."""
    return {name: version(name) for name in packages}


def write(file: Path, versions: dict[str, str], machine: dict[str, Any] | None = None, **figures: Any) -> None:
    """Write the result of the benchmark `file.stem`; `machine` adds to what is said of the machine."""
    found = {"system": f"{platform.system()} {platform.machine()}", "processor": processor(), "cores": os.cpu_count()}
    record = {
        "benchmark": file.stem,
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), **versions},
        "machine": found | (machine or {}),
        **figures,
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8", newline="\n")
    print(f"wrote {file}")


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
