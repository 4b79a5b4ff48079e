"""`qvl-sft plan`: memory and time of a recipe from exact parameter counts, without the weights or a GPU."""

from typing import Any, Literal

from qvl_core.cards import Card, card
from qvl_core.qwen3vl.load import open_config
from qvl_core.qwen3vl.plan import GIB, PEAK_FLOPS, MemoryPlan, plan_memory
from qvl_core.recipe.load import load
from qvl_core.report import Table
from qvl_sft.recipe import RECIPE, SFTRecipe
from qvl_vision.plan import planned_config
from qvl_vision.recipe import Model


def plan(recipe: SFTRecipe, gpu: str | None = None) -> None:
    """Print parameters by group, the predicted memory of one device, and the step time; on `gpu`, whether it fits."""
    from rich.console import Console

    found = None if gpu is None else card(gpu)
    planned = predict(recipe, found)
    console = Console()
    console.print(planned.groups_table(), planned.rich())
    if found is not None:
        console.print(verdict(recipe, planned, found))


def verdict(recipe: SFTRecipe, planned: MemoryPlan, on: Card) -> str:
    """Whether a plan fits on a card, and what to change if it does not."""
    from qvl_sft.memory import advice

    needed = (planned.peak + planned.reserve) / GIB
    said = f"{on.name}: {needed:.1f} of {on.gib:.1f} GiB"
    return f"{said}; it fits." if needed <= on.gib else f"{said}; it does not fit: {advice(recipe)}."


def predict(recipe: SFTRecipe, on: Card | None = None) -> MemoryPlan:
    """The plan of a recipe, on an H200 if no card is named. `auto` precision is taken as bf16, as on any recent GPU."""
    precision = "bf16" if recipe.train.precision == "auto" else recipe.train.precision
    world = (recipe.parallel.nproc or 1) * (recipe.parallel.nodes or 1)
    strategy = ("ddp" if world > 1 else "single") if recipe.parallel.strategy == "auto" else recipe.parallel.strategy
    return plan_memory(
        model_config(recipe.model),
        recipe.tune,
        recipe.batch,
        precision,
        recipe.train.recompute,
        world,
        strategy,
        _attention(recipe),
        PEAK_FLOPS if on is None else on.flops,
        speed=recipe.speed,
        optim=recipe.optim,
        quantization=recipe.model.quantization,
    )


def _attention(recipe: SFTRecipe) -> Literal["packed", "sdpa", "eager"]:
    """What computes attention: padded rows have a mask, which the kernels for documents do not take."""
    if recipe.model.attention in ("sdpa", "eager"):
        return recipe.model.attention
    return "packed" if recipe.batch.packing else "sdpa"


def flops_per_token(recipe: SFTRecipe) -> float:
    """Floating point operations of training per token, for MFU; the share of pictures is the plan's assumption."""
    planned = predict(recipe)
    return planned.flops / (planned.workload.tokens * planned.workload.forwards)


def memory_table(name: str) -> Table:
    """The plan of a shipped recipe as a table of the report."""
    planned = predict(load(RECIPE, name, package="qvl_sft"))
    rows = [{"memory": row, "GiB": round(size / 2**30, 2)} for row, size in planned.rows.items()]
    total = {"memory": "needed, with reserve", "GiB": round((planned.peak + planned.reserve) / 2**30, 2)}
    return Table([*rows, total], f"Memory plan of {name}: one GPU")


def model_config(model: Model) -> Any:
    """The shapes of a released model by its name, else those of the checkpoint; with its new vision encoder."""
    stock = open_config(model.name, model.revision)
    if model.vision is None:
        return stock
    return planned_config(stock, **model.vision.model_dump(exclude={"max_tokens", "calibrate"}))
