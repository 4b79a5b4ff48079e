"""What can be meant, but seldom is: a sentence for each doubt about the blocks that all recipes share, for `check`."""

from collections.abc import Iterator

from qvl_core.recipe.blocks import Recipe

LONG = 1000  # steps that one would not like to lose


def unsaved(recipe: Recipe) -> Iterator[str]:
    """Whether a killed run would lose all of it."""
    if recipe.checkpoint.every is None and (recipe.train.steps is None or recipe.train.steps > LONG):
        yield "checkpoint.every is not set: a killed run would start again from step 0."


def unwarmed(recipe: Recipe) -> Iterator[str]:
    """Whether the learning rate would still rise at the end."""
    if recipe.train.steps is not None and recipe.schedule.warmup >= recipe.train.steps:
        yield f"schedule.warmup {recipe.schedule.warmup:g} is not over after {recipe.train.steps} steps."
