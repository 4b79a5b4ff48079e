"""The page of a run: what every run shows."""

from qvl_core.report import report

__all__ = ["report"]
