"""`qvl-edit train RECIPE` and `from qvl_edit import train` are the same. Importing this loads no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvl_edit.recipe import EditRecipe


def train(
    recipe: "EditRecipe",
    out: Path = Path("runs/edit"),
    fresh: bool = False,
    resume: Path | None = None,
    allow_change: bool = False,
) -> dict[str, Any]:
    """Train `recipe` in the run folder `out` and return its result (qvl.result/1).

    An unfinished run is continued, a finished one is left alone; `fresh` moves either aside, `resume` names a
    checkpoint to continue from, `allow_change` continues although the recipe has changed.
    """
    from qvl_core.training.conduct import conduct
    from qvl_edit.build import build
    from qvl_edit.report import report

    return conduct("qvl-edit", recipe, out, build, report=report, fresh=fresh, resume=resume, allow_change=allow_change)
