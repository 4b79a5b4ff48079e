"""Stage one of two: the new merger learns alone, between a frozen encoder and a frozen language model
(LLaVA, arXiv:2304.08485). It is a run of its own in the run folder, and its final/ is what stage two stands on.

runs/<name>/alignment/{recipe.yaml, checkpoints, final, report.html, result.json ...}
"""

import gc
from collections.abc import Callable

import torch

from qvl_core.recipe.blocks import Group, Schedule
from qvl_core.run import RunFolder, Scalar
from qvl_core.training.conduct import carry_out
from qvl_core.training.parts import Parts
from qvl_core.training.world import World
from qvl_sft.base import from_folder
from qvl_sft.recipe import SFTRecipe
from qvl_sft.report import ALIGNMENT, report
from qvl_vision.recipe import Model

Build = Callable[[SFTRecipe, RunFolder, World], Parts]
# What of stage one's result is not told again in the result of the whole run.
_KEPT_THERE = {"schema", "package", "version", "command", "seed", "complete", "wall_seconds", "final_step"}


def first_stage(recipe: SFTRecipe) -> SFTRecipe:
    """The recipe of stage one. What only matters to stage two is not in it, so that it may change there."""
    alignment, vision = recipe.train.alignment, recipe.model.vision
    assert alignment is not None
    assert vision is not None
    groups = ["merger", *(["deepstack_mergers"] if vision.has_deepstack else [])]
    return recipe.model_copy(
        update={
            "tune": {group: Group(mode="full", lr=alignment.lr) for group in groups},
            "data": recipe.data.model_copy(update={"test": []}),  # not looked at before the end
            "optim": recipe.optim.model_copy(update={"lr": alignment.lr}),
            "schedule": Schedule(name="cosine", warmup=0.03),
            "train": recipe.train.model_copy(
                update={"steps": alignment.steps, "epochs": None, "stage": "one", "alignment": None}
            ),
            "evaluate": recipe.evaluate.model_copy(update={"every": None, "early_stop": None}),
            "speed": recipe.speed.model_copy(update={"cache_features": None}),  # the merger learns
        }
    )


def align(
    recipe: SFTRecipe, run: RunFolder, world: World, build: Build, allow_change: bool = False
) -> tuple[Model, dict[str, Scalar]]:
    """Carry out stage one, or what is left of it. Gives the model block that stage two loads, and stage one's figures.

    Raises what a run raises.
    """
    folder = run.path / ALIGNMENT
    if world.rank == 0:
        print(f"stage one of two: the new merger alone, in {folder}")
    done = carry_out("qvl-sft", first_stage(recipe), folder, build, world, report=report, allow_change=allow_change)
    gc.collect()  # model and optimizer of stage one hold each other; stage two needs their memory
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    if world.rank == 0:
        print("stage two of two: all that `tune` says")
    figures = {f"{ALIGNMENT}_{name}": value for name, value in done.items() if name not in _KEPT_THERE}
    return from_folder(recipe.model, folder.resolve() / "final"), figures
