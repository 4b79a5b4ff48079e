"""A whole training run around the loop: processes, run folder, result.json and report.html, the same for every method.

def train(recipe, out, fresh=False, resume=None, allow_change=False):
    return conduct("qvl-sft", recipe, out, build, report=report, fresh=fresh, resume=resume, allow_change=allow_change)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qvl_core.errors import QVLError
from qvl_core.recipe.blocks import Recipe
from qvl_core.run import RunFolder, result
from qvl_core.training.loop import fit
from qvl_core.training.parts import Parts
from qvl_core.training.session import Outcome
from qvl_core.training.world import World, processes

R = TypeVar("R", bound=Recipe)


def conduct(
    package: str,
    recipe: R,
    out: Path,
    build: Callable[[R, RunFolder, World], Parts],
    *,
    report: Callable[[Path], Path],
    fresh: bool = False,
    resume: Path | None = None,
    allow_change: bool = False,
) -> dict[str, Any]:
    """Train what `build(recipe, run, world)` gives, in the run folder `out`, and return its result.

    An unfinished run is continued, a finished one is reported and left alone; `fresh` moves either aside.
    `report(run_path)` writes the page. Raises what `fit` raises.
    """
    with processes(recipe.parallel) as world:
        run = _open(out, fresh, world)
        finished = world.first(run.read_result())
        if finished and finished["complete"]:
            if world.rank == 0:
                print(f"{run.path} is finished; see {run.report_file}, or start over with --fresh.")
            return dict(finished)
        parts = build(recipe, run, world)
        outcome = fit(parts, recipe, run, world, resume=resume, allow_change=allow_change)
        values = result(
            package,
            seed=recipe.train.seed,
            complete=True,
            figures=_figures(outcome),
            before=outcome.progress.before,
        )
        if world.rank == 0:
            run.write_result(values)
            report(run.path)
            print(f"{run.final} holds the weights of step {outcome.final_step}; {run.report_file} shows the run.")
        return dict(values)


def _open(out: Path, fresh: bool, world: World) -> RunFolder:
    """Rank 0 makes the folder; the others wait and hear whether it could."""
    problem: QVLError | None = None
    if world.rank == 0:
        try:
            RunFolder.open(out, fresh)
        except QVLError as error:
            problem = error
    if (problem := world.first(problem)) is not None:
        raise problem
    return RunFolder(Path(out))


def _figures(outcome: Outcome) -> dict[str, Any]:
    progress = outcome.progress
    return {
        "steps": outcome.steps,
        "final_step": outcome.final_step,
        "tokens": progress.tokens,
        "nonfinite_steps": progress.skipped,
        "bad_samples": sum(not entry["tolerated"] for entry in progress.bad.values()),
        "dropped_samples": sum(entry["tolerated"] for entry in progress.bad.values()),
        **outcome.figures,
    }
