"""Looking at samples: one on the terminal, or all of them in the browser, where each can be accepted or rejected."""

from pathlib import Path

from ..dataset import Dataset
from .clean import write_clean
from .marks import Mark, Marks
from .terminal import view

__all__ = ["Mark", "Marks", "marks_file", "view", "write_clean"]


def marks_file(data: Dataset, name: str = "") -> Path:
    """Where marks are kept: `.marks/<split or file name>.jsonl` beside the data, where they are taken for no split."""
    return data.files[0].parent / ".marks" / f"{name or data.files[0].stem}.jsonl"
