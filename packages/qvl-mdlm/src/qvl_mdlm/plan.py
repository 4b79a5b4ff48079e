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
    batch = recipe.batch
    if recipe.diffusion.complementary and batch.size:  # packed rows have room for both halves of a pair
        micro = None if batch.micro is None else 2 * batch.micro
        recipe = recipe.model_copy(update={"batch": batch.model_copy(update={"size": 2 * batch.size, "micro": micro})})
    config = open_config(recipe.model.name, recipe.model.revision)
    return planning.predict(recipe, config, on, rows, masked=recipe.diffusion.attention != "full")


def advice(recipe: MDLMRecipe) -> str:
    """Which knobs of a recipe to turn when memory does not suffice."""
    return knobs.advice(recipe, predict)
