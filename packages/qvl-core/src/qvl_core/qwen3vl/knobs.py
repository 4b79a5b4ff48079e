"""Which knob of a recipe to turn when memory does not suffice, by what the plan says of each."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.plan import GIB, Plan
from qvl_core.qwen3vl.quantize import check_library
from qvl_core.recipe.blocks import Group, Quantization, Recipe

R = TypeVar("R", bound=Recipe)
Predict = Callable[[R], Plan]


def advice(
    recipe: R, predict: Predict[R], own: Iterable[tuple[str, R]] = (), last: str = "lower media.max_pixels"
) -> str:
    """The knobs that save a tenth or more, the most effective first, with the memory that a device then needs.

    predict  the method's own plan of a recipe
    own      the method's own knobs: what to set, and the recipe with it
    last     what to do where none saves as much
    """
    now = predict(recipe).needed
    knobs = ((words, needed_by(turned, predict)) for words, turned in (*_knobs(recipe), *own))
    sizes = sorted((size, words) for words, size in knobs if size is not None)
    less = [f"{words} ({size / GIB:.1f} GiB)" for size, words in sizes if size < 0.9 * now]
    remedy = f"set {', or '.join(less)}" if less else f"{last}, or take a larger device"
    return f"by the plan a step needs {now / GIB:.1f} GiB: {remedy}{_more_devices(recipe, now, predict)}"


def needed_by(recipe: R, predict: Predict[R]) -> int | None:
    """Bytes; None for what does not go together (DoRA and fewer bits), or not here (a library is missing)."""
    try:
        if recipe.model.quantization is not None:
            check_library(recipe.model.quantization)
        return predict(recipe).needed
    except BadInput:
        return None


def _more_devices(recipe: R, now: int, predict: Predict[R]) -> str:
    """What four devices would need, if there is one now and the weights can be shared."""
    if recipe.model.quantization is not None or recipe.parallel.processes > 1:
        return ""
    each = predict(changed(recipe, "parallel", strategy="fsdp2", nproc=4)).needed
    words = f", or parallel: {{strategy: fsdp2, nproc: 4}} for {each / GIB:.1f} GiB on each of four"
    return words if each < 0.9 * now else ""


def _knobs(recipe: R) -> Iterator[tuple[str, R]]:
    """What is not turned yet, one knob at a time."""
    batch, processes = recipe.batch, recipe.parallel.processes
    strategy, whole = recipe.parallel.strategy, recipe.model.quantization is None
    if recipe.train.recompute is not True:
        yield "train.recompute: true", changed(recipe, "train", recompute=True)
    micro = batch.micro or (1 if batch.size is None else -(-batch.size // processes))
    if micro > 1:
        yield f"batch.micro: {micro // 2}", changed(recipe, "batch", micro=micro // 2)
    if batch.tokens is not None and batch.too_long != "error":  # else a sample that is too long then ends the run
        half = batch.max_length // 2
        yield f"batch.max_length: {half}", changed(recipe, "batch", max_length=half)
    if not recipe.speed.offload:
        yield "speed.offload: true", changed(recipe, "speed", offload=True)
    if recipe.optim.name == "adamw" and not strategy.startswith("zero"):
        yield "optim.name: adamw_8bit", changed(recipe, "optim", name="adamw_8bit")
    if whole and strategy not in {"fsdp2", "zero3"} and recipe.tune.get("llm", Group()).mode != "full":
        yield "model.quantization: nf4", changed(recipe, "model", quantization=Quantization(kind="nf4"))
    if whole and processes > 1 and strategy in {"auto", "ddp", "zero1", "zero2"}:
        yield "parallel.strategy: fsdp2", changed(recipe, "parallel", strategy="fsdp2")


def changed(recipe: R, block: str, **values: Any) -> R:
    """The recipe with other values in one block."""
    return recipe.model_copy(update={block: getattr(recipe, block).model_copy(update=values)})
