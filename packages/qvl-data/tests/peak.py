"""The most memory that this process has held so far; imported by name in child processes."""

import sys
from pathlib import Path


def peak() -> int:
    """Bytes. On Linux not ru_maxrss, which begins with that of the process that started this one."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import psutil

    return int(psutil.Process().memory_info().peak_wset)
