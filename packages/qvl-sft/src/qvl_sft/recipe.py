"""The recipe of supervised fine-tuning: the common blocks."""

from pydantic import model_validator

from qvl_core.recipe.blocks import Recipe


class SFTRecipe(Recipe):
    """Supervised fine-tuning on chats: the answers of the assistant are learned, token by token."""

    @model_validator(mode="after")
    def _a_figure_to_stop_on(self) -> "SFTRecipe":
        if (stop := self.evaluate.early_stop) is None:
            return self
        if not self.data.validation:
            raise ValueError("`evaluate.early_stop` needs `data.validation`, samples to measure on during training")
        figures = [f"validation_{name}" for name in ("loss", *self.evaluate.metrics)]
        if stop.metric not in figures:
            raise ValueError(
                f"`evaluate.early_stop.metric` {stop.metric!r} is no figure; choose {' or '.join(figures)}"
            )
        return self


RECIPE = SFTRecipe
