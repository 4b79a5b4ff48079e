"""The page of a run: what every run shows, with its pictures prompt by prompt."""

from qvl_core.report.drawn import drawn_report as report

__all__ = ["report"]
