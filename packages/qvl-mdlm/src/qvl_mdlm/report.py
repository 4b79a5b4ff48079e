"""The page of a run."""

from pathlib import Path

from qvl_core.report import report as core_report


def report(path: Path) -> Path:
    """Write the report.html of the run in `path` anew. Raises BadInput if there is no run."""
    return core_report(path)
