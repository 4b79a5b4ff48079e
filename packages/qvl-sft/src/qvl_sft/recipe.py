"""The recipe of supervised fine-tuning: the common blocks, another vision encoder, and training in two stages."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qvl_core.errors import BadInput
from qvl_core.recipe import blocks
from qvl_sft.metrics import check_names
from qvl_vision.recipe import Model


class Alignment(blocks.Block):
    """Stage one: only the new merger is trained, with a short warm-up and a cosine (as LLaVA-1.5 does it)."""

    steps: Annotated[int, Field(ge=1)]
    """Optimizer steps of stage one; its batches are the recipe's."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of the merger in stage one."""


class Train(blocks.Train):
    """How long, from which seed, in which precision, in one stage or two."""

    stage: Literal["one", "two"] = "one"
    """one: everything in `tune` from the first step; two: before that, the new merger of model.vision alone."""
    alignment: Alignment | None = None
    """Stage one of `stage: two`."""

    @model_validator(mode="after")
    def _stages_agree(self) -> "Train":
        if self.stage == "two" and self.alignment is None:
            raise ValueError("`stage: two` needs `alignment: {steps: N}`, how long the merger is trained alone")
        if self.stage == "one" and self.alignment is not None:
            raise ValueError("`alignment` belongs to `stage: two`; set it, or remove `alignment`")
        return self


class SFTRecipe(blocks.Recipe):
    """Supervised fine-tuning on chats: the answers of the assistant are learned, token by token."""

    model: Model
    train: Train

    @model_validator(mode="after")
    def _metrics_there_are(self) -> "SFTRecipe":
        try:
            check_names(self.evaluate.metrics)
        except ValueError as error:
            raise ValueError(f"`evaluate.metrics`: {error}") from None
        return self

    @model_validator(mode="after")
    def _a_figure_to_stop_on(self) -> "SFTRecipe":
        if (stop := self.evaluate.early_stop) is None:
            return self
        if not self.data.validation:
            raise ValueError("`evaluate.early_stop` needs `data.validation`, samples to measure on during training")
        figures = [f"validation_{name}" for name in ("loss", *self.evaluate.metrics)]
        whole, of_a_group, _ = stop.metric.partition("/")
        if of_a_group and self.evaluate.group_by is None:
            raise ValueError(f"`evaluate.early_stop.metric` {stop.metric!r} is of a group; set `evaluate.group_by`")
        if whole not in figures:
            raise ValueError(
                f"`evaluate.early_stop.metric` {stop.metric!r} is no figure; choose {' or '.join(figures)}"
            )
        return self

    @model_validator(mode="after")
    def _new_mergers_learn(self) -> "SFTRecipe":
        vision = self.model.vision
        if vision is None or self.train.stage == "two" or self.model.init_from is not None:
            return self
        if vision.new_merger and (problem := left_random(self.tune, vision.has_deepstack)):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _something_to_align(self) -> "SFTRecipe":
        if self.train.stage == "one":
            return self
        if self.model.vision is None or not self.model.vision.new_merger:
            raise ValueError("`train.stage: two` begins with the new merger of `model.vision`, and there is none; "
                             "set `model.vision`, or `stage: one`")  # fmt: skip
        if self.model.init_from is not None:
            raise ValueError(
                "`model.init_from` and `train.stage: two` exclude each other: stage one makes the merger that "
                "init_from would bring; keep one"
            )
        return self


def check_mergers_learn(recipe: SFTRecipe, config: Any) -> None:
    """Raise BadInput if the random mergers of a model that was swapped before would stay as they are."""
    if problem := left_random(recipe.tune, bool(config.vision_config.deepstack_visual_indexes)):
        raise BadInput(f"{problem}.")


def left_random(tune: Mapping[str, blocks.Group], deepstack: bool) -> str | None:
    """What is wrong with a tune block for a model with new mergers, of DeepStack too; None if they learn."""
    for group in ("merger", "deepstack_mergers") if deepstack else ("merger",):
        if group not in tune or tune[group].mode != "full":
            return (
                f"`tune.{group}` must be `{{mode: full, lr: 1e-3}}`: it is new with the swapped vision encoder and "
                "starts from random weights, which would never become anything else"
            )
    return None


RECIPE = SFTRecipe
