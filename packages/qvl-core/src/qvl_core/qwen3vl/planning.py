"""The plan of a whole recipe, and what a card makes of it: the same for every method.

planned = predict(recipe, open_config(recipe.model.name))
print(verdict(planned, card("4090"), lambda: advice(recipe, ...)))
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from qvl_core.cards import Card, card
from qvl_core.qwen3vl.counting import Workload
from qvl_core.qwen3vl.plan import GIB, PEAK_FLOPS, MemoryPlan, Plan, plan_memory
from qvl_core.recipe.blocks import Recipe


def predict(
    recipe: Recipe, config: Any, on: Card | None = None, rows: Sequence[int] = (), masked: bool = False
) -> MemoryPlan:
    """The plan of a recipe for a model of this configuration, on an H200 if no card is named.

    rows    of the embedding that are trained beside LoRA
    masked  a mask (B, 1, T, T) says who sees whom, also in packed rows

    `auto` precision is taken as bf16, as on any recent GPU.
    """
    precision = "bf16" if recipe.train.precision == "auto" else recipe.train.precision
    world, strategy = recipe.parallel.processes, recipe.parallel.planned
    return plan_memory(
        config,
        recipe.tune,
        recipe.batch,
        precision,
        recipe.train.recompute,
        world,
        strategy,
        _attention(recipe, masked),
        PEAK_FLOPS if on is None else on.flops,
        speed=recipe.speed,
        optim=recipe.optim,
        quantization=recipe.model.quantization,
        embedding_rows=rows,
        mask=_mask(recipe, world) if masked else 0,
    )


def show(planned: Plan, gpu: str | None, advice: Callable[[], str]) -> None:
    """Print parameters by group, the memory of one device, and the step time; on `gpu`, whether it fits."""
    from rich.console import Console

    console = Console()
    console.print(planned.groups_table(), planned.rich())
    if gpu is not None:
        console.print(verdict(planned, card(gpu), advice))


def verdict(planned: Plan, on: Card, advice: Callable[[], str]) -> str:
    """Whether a plan fits on a card, and what to change if it does not."""
    needed = planned.needed / GIB
    cards = on.name if planned.devices == 1 else f"{on.name}, each of {planned.devices}"
    said = f"{cards}: {needed:.1f} of {on.gib:.1f} GiB"
    return f"{said}; it fits." if needed <= on.gib else f"{said}; it does not fit: {advice()}."


def flops_per_token(planned: MemoryPlan) -> float:
    """Floating point operations of training per token, for MFU; the share of pictures is the plan's assumption."""
    return planned.flops / (planned.workload.tokens * planned.workload.forwards)


def _mask(recipe: Recipe, world: int) -> int:
    """Entries of the mask of one forward: packed samples lie in one row."""
    tokens = Workload.of(recipe.batch, world).tokens
    return tokens * (tokens if recipe.batch.packing else recipe.batch.max_length)


def _attention(recipe: Recipe, masked: bool) -> Literal["packed", "sdpa", "eager"]:
    """What computes attention: padded rows and what is `masked` have a mask, which the packed kernels do not take."""
    if recipe.model.attention in ("sdpa", "eager"):
        return recipe.model.attention
    return "packed" if recipe.batch.packing and not masked else "sdpa"
