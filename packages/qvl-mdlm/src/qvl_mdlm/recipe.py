"""The recipe of masked diffusion: the common blocks, what is masked and how it counts, and how answers are written."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qvl_core.recipe import blocks

METRICS = ("exact_match", "nelbo", "choice_accuracy")


class Diffusion(blocks.Block):
    """What is masked, who sees whom, and what a masked token counts."""

    attention: Literal["full", "prefix", "block"] = "full"
    """full: all sees all; prefix: a prompt sees itself, an answer also what is before it; block: so in blocks."""
    block_size: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a block (`attention: block`)."""
    mask_token_id: Annotated[int, Field(ge=0)] | None = None
    """Row of the embedding that stands for what is masked; default: the first that no token has."""
    mask_row: bool = False
    """Train the embedding's row of the mask token beside LoRA, while the rest of `embed` is frozen."""
    pad_to: Annotated[int, Field(ge=1)] | None = 32
    """Fill answers with end tokens to a multiple of this: the model learns to stop. Blocks are always filled."""
    prompt_loss: bool = False
    """Mask and learn the text of prompts as well (`attention: full`); pictures and the template never are."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Part that is masked at time t: t, or cos(pi/2 (1 - t))."""
    masks: Literal["exact", "bernoulli"] = "exact"
    """exact: a number is drawn, then so many tokens; bernoulli: each token for itself, which spreads far more."""
    times: Literal["stratified", "antithetic", "iid"] = "stratified"
    """How times are drawn: spread over the samples of a step, in mirrored pairs of them, or each for itself."""
    complementary: bool = False
    """Show each sample twice in its step, with a mask and with its complement (`schedule: linear`)."""
    weight: Literal["scheduler", "uniform"] = "scheduler"
    """What a masked token counts: as the bound on the likelihood asks, or 1."""
    norm: Literal["token", "sequence", "batch"] = "token"
    """The loss is a mean over tokens that could be masked, over samples of their mean, or over samples of their sum."""

    @model_validator(mode="after")
    def _what_goes_together(self) -> "Diffusion":
        if (self.attention == "block") != (self.block_size is not None):
            raise ValueError("`attention: block` and `block_size` need each other; give both or neither")
        if self.prompt_loss and self.attention != "full":
            raise ValueError(
                f"`prompt_loss` and `attention: {self.attention}` exclude each other: prompts are clean there; set "
                "`attention: full`, or remove prompt_loss"
            )
        if self.complementary and self.schedule != "linear":
            raise ValueError("`complementary` needs `schedule: linear`, under which a mask's complement has its law")
        return self


class Sampling(blocks.Block):
    """How answers are written when a run is evaluated; `qvl-mdlm sample` has the same as options."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Forward passes for an answer; default: one for each token."""
    block: Annotated[int, Field(ge=1)] | None = None
    """Tokens that are finished before the next are begun; default: all at once, in `attention: block` its block."""
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Write all tokens that the model is so sure of at once, and at least one."""
    eos_guard: bool = False
    """Write end tokens only when nothing else is left in the block."""


class MDLMRecipe(blocks.Recipe):
    """Masked diffusion on chats: answers are learned by filling in what is masked."""

    diffusion: Diffusion = Diffusion()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _masks_and_packing(self) -> "MDLMRecipe":
        if self.model.attention in ("sdpa", "eager") and self.batch.packing:
            raise ValueError(
                f"`model.attention: {self.model.attention}` would let the samples of a packed row see one another; set "
                "`batch.packing: false`, or leave attention at auto"
            )
        return self

    @model_validator(mode="after")
    def _mask_row_beside_lora(self) -> "MDLMRecipe":
        modes = {group: block.mode for group, block in self.tune.items()}
        if self.diffusion.mask_row and ("lora" not in modes.values() or modes.get("embed", "frozen") != "frozen"):
            raise ValueError("`diffusion.mask_row` belongs to LoRA with `embed` frozen; remove it, or change `tune`")
        return self

    @model_validator(mode="after")
    def _metrics_there_are(self) -> "MDLMRecipe":
        for name in self.evaluate.metrics:
            if name not in METRICS:
                raise ValueError(f"`evaluate.metrics`: there is no {name!r}; choose of {', '.join(METRICS)}")
        return self


RECIPE = MDLMRecipe
