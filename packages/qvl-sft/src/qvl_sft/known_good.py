"""Ranges in which recipes are known to work. Outside them `check` says why it doubts; it never blocks."""

from collections.abc import Iterator

from qvl_core.recipe.blocks import Group
from qvl_sft.recipe import SFTRecipe

LARGE = 1e9  # parameters; smaller models bear higher rates


def warnings(recipe: SFTRecipe, parameters: int, random_merger: bool = False) -> Iterator[str]:
    """One sentence for each doubt about a recipe for a model of so many parameters.

    random_merger  the checkpoint of model.name has a swapped tower whose merger has not been trained yet
    """
    random_merger = random_merger if recipe.model.vision is None else recipe.model.vision.new_merger
    known = recipe.train.stage == "two" or recipe.model.init_from is not None  # after stage one, or from weights
    new = {"merger", "deepstack_mergers"} if random_merger and not known else set()
    for name, group in recipe.tune.items():
        if name in new and group.mode == "full":
            yield from _about_new_merger(f"tune.{name}", group.lr or recipe.optim.lr, parameters)
        else:
            yield from _about_group(name, group, group.lr or recipe.optim.lr, parameters)
    if recipe.train.alignment is not None:
        yield from _about_new_merger("train.alignment", recipe.train.alignment.lr, parameters)
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


def _about_new_merger(place: str, lr: float, parameters: int) -> Iterator[str]:
    if lr < 1e-4:
        yield (
            f"{place}: lr {lr:g} is too low for a new merger, which starts from random weights: at 2e-5 the digits "
            "were read at 0.30, at 1e-3 at 0.82; 1e-3 is usual."
        )
    if lr > 1e-2 and parameters > LARGE:
        yield f"{place}: lr {lr:g} is high for a new merger; 1e-3 is usual."


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
