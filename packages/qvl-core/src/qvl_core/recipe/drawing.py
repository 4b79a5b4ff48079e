"""Blocks that the recipes of methods which draw pictures share, where they differ from those of text."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qvl_core.recipe import blocks


def unusual(kind: type[blocks.Block], values: Any, keys: Iterable[str]) -> list[str]:
    """The keys that are given another value than their default, which a resolved recipe has."""
    given = values if isinstance(values, dict) else {}
    return [key for key in keys if key in given and given[key] != kind.model_fields[key].default]


class DrawingBatch(blocks.Batch):
    """How pictures become optimizer steps."""

    packing: bool = False
    """Prompts are padded, never packed."""
    group_by_length: bool = False
    """Prompts are not grouped by length."""

    @model_validator(mode="before")
    @classmethod
    def _pictures(cls, values: Any) -> Any:
        for key in unusual(cls, values, ("tokens", "packing", "group_by_length", "max_length", "too_long")):
            raise ValueError(f"`{key}` belongs to text; give `size`, the pictures of a step")
        return values


class DrawingTrain(blocks.Train):
    """How long, from which seed, in which precision."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute type; trained weights are always kept in fp32. auto: bf16 on a GPU, fp32 on a CPU."""
    divergence: Annotated[float, Field(gt=1)] | None = 20.0
    """Stop when a step's loss is over so many times its running mean; looked at when a line is logged. null: never."""

    @model_validator(mode="after")
    def _all_layers_or_none(self) -> "DrawingTrain":
        if not isinstance(self.recompute, bool):
            raise ValueError(
                "`recompute` names groups of Qwen3-VL; drawing recomputes every layer that gradients pass, or none: "
                "set true or false"
            )
        return self


class DrawingEvaluate(blocks.Evaluate):
    """What is measured during training: the loss on held-out pictures, whose noise is the same every time."""

    metrics: list[str] = []  # noqa: RUF012 (pydantic copies it)
    """None: pictures are judged by the command `evaluate`."""

    @model_validator(mode="before")
    @classmethod
    def _no_answers(cls, values: Any) -> Any:
        for key in unusual(cls, values, ("metrics", "max_new_tokens", "group_by")):
            raise ValueError(f"`{key}` belongs to answers; the loss alone is measured (validation_loss): remove it")
        return values
