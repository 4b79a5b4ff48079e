"""`qvl-sft plan`: memory and time of a recipe from exact parameter counts, without the weights or a GPU."""

from typing import Any

from qvl_core.cards import Card, card
from qvl_core.qwen3vl import knobs, planning
from qvl_core.qwen3vl.load import open_config
from qvl_core.qwen3vl.plan import GIB, MemoryPlan
from qvl_core.recipe.load import load
from qvl_core.report import Table
from qvl_sft.recipe import RECIPE, SFTRecipe
from qvl_vision.plan import planned_config
from qvl_vision.recipe import Model


def plan(recipe: SFTRecipe, gpu: str | None = None) -> None:
    """Print parameters by group, the predicted memory of one device, and the step time; on `gpu`, whether it fits."""
    planned = predict(recipe, None if gpu is None else card(gpu))
    planning.show(planned, gpu, lambda: advice(recipe))


def predict(recipe: SFTRecipe, on: Card | None = None) -> MemoryPlan:
    """The plan of a recipe, on an H200 if no card is named."""
    return planning.predict(recipe, model_config(recipe.model), on)


def advice(recipe: SFTRecipe) -> str:
    """Which knobs of a recipe to turn when memory does not suffice."""
    return knobs.advice(recipe, predict)


def memory_table(name: str) -> Table:
    """The plan of a shipped recipe as a table of the report."""
    planned = predict(load(RECIPE, name, package="qvl_sft"))
    rows = [{"memory": row, "GiB": round(size / GIB, 2)} for row, size in planned.rows.items()]
    total = {"memory": "needed, with reserve", "GiB": round((planned.peak + planned.reserve) / GIB, 2)}
    return Table([*rows, total], f"Memory plan of {name}: one GPU")


def model_config(model: Model) -> Any:
    """The shapes of a released model by its name, else those of the checkpoint; with its new vision encoder."""
    stock = open_config(model.name, model.revision)
    if model.vision is None:
        return stock
    return planned_config(stock, **model.vision.model_dump(exclude={"max_tokens", "calibrate"}))
