"""The report of a run: one HTML file, readable anywhere, that asks for nothing from outside.

from qvl_core.report import Curves, Section, render
html = render("My run", [Section("Training", [Curves("Loss", {"training": [(1, 2.3), (2, 1.9)]})])])
"""

from collections.abc import Sequence
from pathlib import Path

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.report.blocks import (
    Bars,
    Block,
    Card,
    Cards,
    Code,
    Curves,
    Figure,
    Figures,
    Histogram,
    Matrix,
    Picture,
    Pictures,
    Said,
    Section,
    Shape,
    Stacks,
    Strip,
    Table,
    Text,
    Token,
    Transcript,
    Turn,
)
from qvl_core.report.render import render
from qvl_core.report.sections import run_lead, run_sections
from qvl_core.run import RunFolder

__all__ = [
    "Bars", "Block", "Card", "Cards", "Code", "Curves", "Figure", "Figures", "Histogram", "Matrix", "Picture",
    "Pictures", "Said", "Section", "Shape", "Stacks", "Strip", "Table", "Text", "Token", "Transcript", "Turn", "render",
    "report", "run_sections", "write",
]  # fmt: skip


def write(run: RunFolder, sections: Sequence[Section] | None = None, title: str = "", lead: str = "") -> Path:
    """Write the run's report.html. Default are the sections every run has, the folder's name, and what made the run."""
    page = render(title or run.path.resolve().name, sections or run_sections(run), lead or run_lead(run))
    write_atomic(run.report_file, page)
    return run.report_file


def report(path: Path) -> Path:
    """Write the report of the run in `path` anew. Raises BadInput if there is no run."""
    run = RunFolder(Path(path))
    if not run.recipe_file.is_file():
        raise BadInput(f"{path}: is not a run folder (it has no recipe.yaml); give the --out of a training run.")
    return write(run)
