"""The recipe of masked diffusion: the common blocks, what is masked and how it counts, and how answers are written."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qvl_core.recipe import blocks

METRICS = ("exact_match", "nelbo", "choice_accuracy")
WRITTEN = ("validation_exact_match", "validation_forwards_per_token")  # figures that `sampling` has a part in


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
    """Steps of an answer, at least one a block; default: one for each token."""
    block: Annotated[int, Field(ge=1)] | None = None
    """Tokens that are finished before the next are begun; default: all, or the model's."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 always takes the likeliest token."""
    gumbel: Literal["standard", "llada"] = "standard"
    """How noise is written; llada: the same draw as LLaDA's code has it."""
    remasking: Literal["confidence", "margin", "entropy", "random"] = "confidence"
    """By what tokens are kept in a step."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Write all tokens of at least this probability, and one."""
    factor: Annotated[float, Field(ge=0)] | None = None
    """Write as many tokens as this bound on them together allows."""
    guidance: Annotated[float, Field(ge=0)] = 0.0
    """Classifier-free guidance; two forward passes a step."""
    eos_guard: bool = False
    """Write end tokens last, with the last of everything else."""
    early_stop: bool = True
    """Stop when nothing is masked before the first end token."""
    suppress: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Id of a token that is never written; repeatable."""
    cache: Literal["auto", "none", "dual"] = "auto"
    """auto: where it is exact; dual: of full attention, an approximation."""

    @model_validator(mode="after")
    def _one_pace(self) -> "Sampling":
        given = [name for name in ("steps", "threshold", "factor") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: each says how many tokens a step writes; keep one")
        if self.cache == "dual" and self.guidance:
            raise ValueError("cache dual and guidance do not go together; leave one out")
        return self


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
    def _sampling_of_this_model(self) -> "MDLMRecipe":
        how, longest, pattern = self.sampling, self.evaluate.max_new_tokens, self.diffusion.attention
        if how.steps is not None and how.steps > longest:
            raise ValueError(f"`sampling.steps` {how.steps}: must be at most `evaluate.max_new_tokens`, {longest}")
        blocks = -(-longest // (how.block or self.diffusion.block_size or longest))
        if how.steps is not None and how.steps < blocks:
            raise ValueError(
                f"`sampling.steps` {how.steps}: an answer has {blocks} blocks, and each takes a step; give {blocks} or "
                "more, or lower `evaluate.max_new_tokens`"
            )
        if how.block is not None and pattern == "block" and how.block != self.diffusion.block_size:
            raise ValueError(f"`sampling.block` {how.block}: blocks are those of `diffusion.block_size`; leave it out")
        if how.cache == "dual" and pattern != "full":
            raise ValueError(
                f"`sampling.cache: dual` is for `attention: full`; {pattern} has an exact one; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _metrics_there_are(self) -> "MDLMRecipe":
        for name in self.evaluate.metrics:
            if name not in METRICS:
                raise ValueError(f"`evaluate.metrics`: there is no {name!r}; choose of {', '.join(METRICS)}")
        return self


RECIPE = MDLMRecipe
