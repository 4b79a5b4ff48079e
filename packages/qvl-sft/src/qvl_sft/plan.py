"""`qvl-sft plan`: memory and time of a recipe from exact parameter counts, without the model or a GPU."""

from qvl_core.recipe.blocks import Recipe
