"""A whole training run around the loop: processes, run folder, result.json and report.html, the same for every method.

def train(recipe, out, fresh=False, resume=None, allow_change=False):
    return conduct("qvl-sft", recipe, out, build, report=report, fresh=fresh, resume=resume, allow_change=allow_change)
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from qvl_core.commits import commits
from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Recipe
from qvl_core.recipe.load import dump, load
from qvl_core.run import RunFolder, result
from qvl_core.training.checkpoint import differences
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

    An unfinished run is continued, a finished one of the same recipe is reported and left alone; `fresh` moves either
    aside. `report(run_path)` writes the page. Raises what `fit` raises, and BadInput for a finished run of another
    recipe, unless `allow_change` says to go on with it.
    """
    with processes(recipe.parallel) as world:
        return carry_out(
            package, recipe, out, build, world, report=report, fresh=fresh, resume=resume, allow_change=allow_change
        )


def carry_out(
    package: str,
    recipe: R,
    out: Path,
    build: Callable[[R, RunFolder, World], Parts],
    world: World,
    *,
    report: Callable[[Path], Path],
    fresh: bool = False,
    resume: Path | None = None,
    allow_change: bool = False,
) -> dict[str, Any]:
    """`conduct` in processes that have met already: for a run that another one begins with."""
    run = RunFolder(Path(out))
    finished = world.on_first(lambda: _open(recipe, run, fresh, allow_change))
    if finished is not None:
        world.on_first(lambda: _show(run, report))
        return finished
    with commits(world.first(_stands_on(run, resume))) as found:
        parts = build(recipe, run, world)
        parts = replace(parts, about={**parts.about, "commits": dict(found)})
        outcome = fit(parts, recipe, run, world, resume=resume, allow_change=allow_change)
    values = result(
        package,
        seed=recipe.train.seed,
        complete=True,
        figures=_figures(outcome) | dict(parts.figures),
        before=outcome.progress.before,
    )
    if world.rank == 0:
        run.write_result(values)
        report(run.path)
        print(f"{run.final} holds the weights of step {outcome.final_step}; {run.report_file} shows the run.")
    return dict(values)


def _open(recipe: Recipe, run: RunFolder, fresh: bool, allow_change: bool) -> dict[str, Any] | None:
    """Create the run folder or take it up. Gives the result of a finished run of this very recipe."""
    RunFolder.open(run.path, fresh)
    if not run.recipe_file.is_file():
        run.write_recipe(dump(recipe))  # from here on it is a run, which the same command or a mended one takes up
    finished = run.read_result()
    if finished is None or not finished["complete"]:
        return None
    changes = differences(_what_matters(load(type(recipe), run.recipe_file)), _what_matters(recipe))
    if changes and not allow_change:
        raise BadInput(
            f"{run.path}: this run is finished, with another recipe ({'; '.join(changes)}); start over with --fresh, "
            "choose another --out, or continue it with the change by --allow-change."
        )
    if changes:
        run.result_file.unlink()
        return None
    return finished


def _stands_on(run: RunFolder, resume: Path | None) -> dict[str, str]:
    """Commits of the hub that a run began with, or the one whose checkpoint it begins with."""
    begun = [run] if resume is None else [run, RunFolder(resume.resolve().parent.parent)]
    recorded = (one.read_environment().get("commits") for one in begun if one.environment_file.is_file())
    return next((found for found in recorded if isinstance(found, dict)), {})


def _what_matters(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what may change at any time."""
    return recipe.model_dump(mode="json", exclude=recipe.indifferent)


def _show(run: RunFolder, report: Callable[[Path], Path]) -> None:
    """Say that a run is finished; it may have been killed before its page was written."""
    if not run.report_file.is_file():
        report(run.path)
    print(f"{run.path} is finished; see {run.report_file}, or start over with --fresh.")


def _figures(outcome: Outcome) -> dict[str, Any]:
    progress = outcome.progress
    return {
        "steps": outcome.steps,
        "final_step": outcome.final_step,
        "tokens": progress.tokens,
        "nonfinite_steps": progress.skipped,
        "bad_samples": len(progress.bad),
        "dropped_samples": len(progress.dropped),
        **outcome.figures,
    }
