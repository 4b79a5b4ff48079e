"""Ranges in which recipes are known to work. Outside them `check` says why it doubts; it never blocks."""

from collections.abc import Iterator

from qvl_core.recipe.blocks import Group
from qvl_sft.recipe import SFTRecipe

LARGE = 1e9  # parameters; smaller models bear higher rates


def warnings(recipe: SFTRecipe, parameters: int) -> Iterator[str]:
    """One sentence for each doubt about a recipe for a model of so many parameters."""
    for name, group in recipe.tune.items():
        yield from _about_group(name, group, group.lr or recipe.optim.lr, parameters)
    steps = recipe.train.steps
    if recipe.schedule.warmup >= 1 and steps is not None and recipe.schedule.warmup > 0.2 * steps:
        yield f"schedule.warmup of {recipe.schedule.warmup:g} steps is over a fifth of the run; 3 % is usual."
    if not recipe.data.validation and recipe.train.epochs is not None and recipe.train.epochs > 1:
        yield "data.validation is empty: over several epochs only a validation loss shows overfitting."
    if recipe.checkpoint.every is None and (steps is None or steps > 1000):
        yield "checkpoint.every is not set: a killed run would start again from step 0."

    yield from idle_devices(recipe, (recipe.parallel.nproc or 1) * (recipe.parallel.nodes or 1))


def idle_devices(recipe: SFTRecipe, processes: int) -> Iterator[str]:
    """A sentence if a step has fewer rows than there are processes to work on them."""
    batch = recipe.batch
    rows = batch.size or (batch.tokens or 0) // batch.max_length
    if rows < processes:
        what, key = ("samples", "size") if batch.size else (f"packed rows of {batch.max_length} tokens", "tokens")
        yield f"a step has {rows} {what} for {processes} processes, so some only wait; raise batch.{key}."


def _about_group(name: str, group: Group, lr: float, parameters: int) -> Iterator[str]:
    if group.mode == "lora":
        if lr < 2e-5:
            yield f"tune.{name}: lr {lr:g} is low for LoRA, which starts from zero; 1e-4 to 5e-4 is usual."
        if lr > 1e-3 and parameters > LARGE:
            yield f"tune.{name}: lr {lr:g} is high for LoRA on a large model; 1e-4 to 5e-4 is usual."
        if not 0.5 <= group.alpha / group.rank <= 4:
            yield f"tune.{name}: alpha / rank is {group.alpha / group.rank:g}; 1 to 2 is usual."
    if group.mode == "full" and parameters > LARGE:
        if name in ("llm", "embed", "lm_head", "vision") and lr > 5e-5:
            yield f"tune.{name}: lr {lr:g} is high for training in full; 1e-6 to 2e-5 keeps what the model knows."
        if name in ("merger", "deepstack_mergers") and lr > 1e-3:
            yield f"tune.{name}: lr {lr:g} is high for a merger; 1e-5 to 1e-4 is usual."
    if name == "vision" and group.mode == "lora" and lr > 2e-4 and parameters > LARGE:
        yield f"tune.vision: lr {lr:g} moves the tower quickly; a tenth of the language model's rate is usual."
