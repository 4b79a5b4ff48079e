"""`qvl-mdlm plan`: memory and time of a recipe from exact parameter counts, without the weights or a GPU."""

from qvl_core.cards import Card, card
from qvl_core.qwen3vl import knobs, planning
from qvl_core.qwen3vl.load import open_config
from qvl_core.qwen3vl.plan import MemoryPlan
from qvl_mdlm.recipe import MDLMRecipe


def plan(recipe: MDLMRecipe, gpu: str | None = None) -> None:
    """Print parameters by group, the predicted memory of one device, and the step time; on `gpu`, whether it fits."""
    planned = predict(recipe, None if gpu is None else card(gpu))
    planning.show(planned, gpu, lambda: advice(recipe))


def predict(recipe: MDLMRecipe, on: Card | None = None) -> MemoryPlan:
    """The plan of a recipe, on an H200 if no card is named."""
    rows = (0,) if recipe.diffusion.mask_row else ()  # one of them: which, makes no difference
    return planning.predict(recipe, open_config(recipe.model.name, recipe.model.revision), on, rows)


def advice(recipe: MDLMRecipe) -> str:
    """Which knobs of a recipe to turn when memory does not suffice."""
    return knobs.advice(recipe, predict)
