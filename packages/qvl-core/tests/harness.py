"""Running the toy: in this process, in a child, in several, killed or not."""

import contextlib
import io
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from toy import network, toy_parts, toy_recipe

from qvl_core.errors import QVLError
from qvl_core.recipe.blocks import Recipe
from qvl_core.run import RunFolder
from qvl_core.testing import die
from qvl_core.training.launch import environment, free_port
from qvl_core.training.loop import fit
from qvl_core.training.parts import Callbacks, Parts
from qvl_core.training.session import Outcome
from qvl_core.training.world import processes


def toy_run(out: Path, parts: Parts | None = None, recipe: Recipe | None = None, **options: Any) -> Outcome:
    """What a train command does: join the processes, open the run folder, fit."""
    recipe = recipe or toy_recipe()
    with processes(recipe.parallel) as world:
        run = RunFolder(out)
        if world.rank == 0:
            RunFolder.open(out)
        world.barrier()
        return fit(parts or toy_parts(network()), recipe, run, world, **options)


def die_after(step: int) -> Callbacks:
    return Callbacks(on_step=lambda done: die() if done == step else None)


def context() -> Any:
    """Processes that import nothing anew on Linux (see the root's conftest.py); one that knows of a GPU cannot fork."""
    forks = sys.platform == "linux" and not torch.cuda.is_available()
    return multiprocessing.get_context("forkserver" if forks else "spawn")


def child(target: Callable[..., None], *arguments: Any) -> int:
    """Run `target` in a process of its own and give its exit code."""
    process = context().Process(target=in_child, args=(target, *arguments))
    process.start()
    process.join()
    return int(process.exitcode)


def together(size: int, target: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Run `target` in `size` processes that find each other. Gives their exit codes."""
    places = [environment({}, rank, size, port) for port in [free_port()] for rank in range(size)]
    ranks = [context().Process(target=in_child, args=(target, *arguments), kwargs=place) for place in places]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def in_child(target: Callable[..., None], *arguments: Any, **environment: str) -> None:
    """Run `target` in this process, made for it; a run's errors become exit codes as on the command line."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            target(*arguments)
        except QVLError as error:
            sys.exit(error.exit_code)
