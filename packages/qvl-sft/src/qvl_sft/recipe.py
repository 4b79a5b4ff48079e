"""The recipe of supervised fine-tuning: the common blocks."""

from qvl_core.recipe.blocks import Recipe


class SFTRecipe(Recipe):
    """Supervised fine-tuning on chats: the answers of the assistant are learned, token by token."""


RECIPE = SFTRecipe
