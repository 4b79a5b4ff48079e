"""The loop: every method trains through this one visible `for step in range(...)`.

Batches, augmentation, noise and dropout are functions of (seed, step, slot), and a checkpoint holds all the rest, so
that a run killed at any moment and started again ends with the same bits as one that was never interrupted.
"""

from contextlib import closing
from pathlib import Path

from qvl_core.recipe.blocks import Recipe
from qvl_core.run import RunFolder
from qvl_core.training.parts import Parts
from qvl_core.training.prefetch import shares
from qvl_core.training.session import Outcome, Session
from qvl_core.training.stopping import stop_requests
from qvl_core.training.world import World


def fit(
    parts: Parts,
    recipe: Recipe,
    run: RunFolder,
    world: World,
    *,
    resume: Path | None = None,
    allow_change: bool = False,
) -> Outcome:
    """Train for `parts.steps` optimizer steps and leave checkpoints and final/ in the run folder.

    Continues from `resume`, else from the run's newest whole checkpoint. Raises Preempted when asked to stop, even
    while it evaluates (the state is saved), BadInput for too many bad samples, QVLError for lasting non-finite losses
    or a full disk.
    """
    with stop_requests() as request, Session(parts, recipe, run, world, request, resume, allow_change) as session:
        if session.owes_evaluation():
            session.evaluate()
            session.save()
        with closing(shares(parts.batches, session.step, parts.steps, world, recipe.data.workers)) as batches:
            for step in range(session.step, parts.steps):
                if session.stopped_early():
                    break
                micros, count, asked_to_stop = session.agree(next(batches))
                if asked_to_stop:
                    session.stop()

                session.train(step, micros, count)

                if due(session.step, recipe.log.every):
                    session.log()
                if due(session.step, recipe.evaluate.every) and session.undecided():
                    session.evaluate()
                if due(session.step, parts.preview_every) and session.step < parts.steps:
                    session.preview()
                if due(session.step, recipe.checkpoint.every) or session.is_best():
                    session.save()
        return session.finish()


def due(step: int, every: int | None) -> bool:
    """Whether something done every `every` steps (None: never) is done after `step` steps."""
    return every is not None and step % every == 0
