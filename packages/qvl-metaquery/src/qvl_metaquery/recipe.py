"""The recipe of drawing: the common blocks, queries and connector, what is learned, and how pictures are drawn."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from qvl_core.recipe import blocks
from qvl_core.recipe.drawing import DrawingBatch, DrawingEvaluate, DrawingTrain, unusual
from qvl_metaquery.dropout import Task
from qvl_metaquery.settings import SYSTEM, Settings

GROUPS = ("queries", "connector", "transformer")
Times = Literal["uniform", "logit_normal"]


class Sana(blocks.Block):
    """The generator: a folder or hub id in the layout of diffusers, with `transformer/` and `vae/` in it."""

    name: str = "Efficient-Large-Model/Sana_1600M_512px_diffusers"
    """Hub id, local folder, or `tiny` (a small random Sana built on the spot)."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""


class Queries(blocks.Block):
    """What Qwen3-VL is asked with, and how prompts are laid out before it."""

    number: Annotated[int, Field(ge=1)] = 256
    """Learned queries; as many conditions are given to Sana."""
    system: str = SYSTEM
    """Text of the system turn."""
    caption_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest caption in tokens; the rest is cut."""
    image_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of all pictures of a prompt together; default: each as `media` says."""


class Connector(blocks.Block):
    """Layers between Qwen3-VL and Sana."""

    layers: Annotated[int, Field(ge=0)] = 24
    """Encoder layers, in which all queries see one another."""
    width: Annotated[int, Field(ge=64, multiple_of=64)] | None = None
    """Width of the layers; default: that of the language model. 1024 makes an 8B's connector 16 times smaller."""


class Flow(blocks.Block):
    """What is learned from a picture."""

    task: Task = "t2i"
    """Which part of a condition is left out at times: the text, or the pictures; samples without pictures are t2i."""
    size: Annotated[int, Field(ge=2)] = 512
    """Side of the pictures in pixels: the shorter side is resized to it, the middle of the longer one kept."""
    dropout: Annotated[float, Field(ge=0, le=0.3)] = 0.1
    """Part of the samples whose text (pictures, both) is left out, so that guidance has something to compare with."""
    times: Times = "uniform"
    """How noise levels are drawn: all alike, or mostly the middle ones."""
    train_shift: Annotated[float, Field(gt=0)] = 1.0
    """Moves noise levels in training: 1 not at all, above 1 towards noise."""
    sample_shift: Annotated[float, Field(gt=0)] | None = None
    """The same in sampling; default: as Sana's scheduler has it (3)."""
    latents: str | None = None
    """Folder that `qvl-metaquery encode` has written: pictures are not opened and encoded again in each step."""


class Sampling(blocks.Block):
    """How pictures are drawn in previews and evaluations; `qvl-metaquery generate` has the same as options."""

    guidance: Annotated[float, Field(ge=0)] = 4.5
    """How much more than the negative prompt the prompt weighs; 1: no guidance."""
    image_guidance: Annotated[float, Field(ge=0)] = 1.5
    """The same for pictures of a prompt; at most 1: they are not guided apart."""
    steps: Annotated[int, Field(ge=1)] = 30
    """Steps from noise to picture."""
    scheduler: Literal["euler", "dpm"] = "euler"
    """euler: first order; dpm: DPM-Solver++ of second order."""
    negative: str = ""
    """What is not to be drawn."""
    preview: Annotated[int, Field(ge=0)] | None = None
    """Steps of training between pictures for report.html; 0: none; default: with each evaluation."""


class DrawingSpeed(blocks.Speed):
    """What makes a step fast. Drawing has `fused_optimizer` and `linear_patches`; the others stay as they are."""

    @model_validator(mode="before")
    @classmethod
    def _what_acts(cls, values: Any) -> Any:
        reasons = {
            "label_rows": "no logits are computed",
            "frozen_features": "prompts are never read with gradients",
            "cache_features": "only the autoencoder's latents are stored (`flow.latents`)",
            "offload": "activations stay on the device (`train.recompute: true` makes them few)",
            "compile": "layers are not compiled",
        }
        for key in unusual(cls, values, reasons):
            raise ValueError(f"`{key}` does nothing in drawing, where {reasons[key]}: remove it")
        return values


class DrawingOptim(blocks.Optim):
    """AdamW as MetaQuery has it."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of every group that names none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay; never applied to queries, norms and biases."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's exponential averages of the gradient and of its square."""


class MetaQueryRecipe(blocks.Recipe):
    """Qwen3-VL that draws: queries and connector are trained, Sana as `tune` says, Qwen3-VL never."""

    indifferent: ClassVar[dict[str, Any]] = blocks.Recipe.indifferent | {"flow": {"latents"}}  # equal to the bit

    sana: Sana = Sana()
    queries: Queries = Queries()
    connector: Connector = Connector()
    flow: Flow = Flow()
    sampling: Sampling = Sampling()
    batch: DrawingBatch
    optim: DrawingOptim = DrawingOptim()
    train: DrawingTrain
    evaluate: DrawingEvaluate = DrawingEvaluate()
    speed: DrawingSpeed = DrawingSpeed()

    @model_validator(mode="before")
    @classmethod
    def _groups_are_named_once(cls, values: Any) -> Any:
        for key in ("modules_to_freeze", "modules_to_unfreeze"):
            if isinstance(values, dict) and key in values:
                raise ValueError(
                    f"`{key}`: `tune` says what is trained ({', '.join(GROUPS)}: full or frozen); Qwen3-VL and the "
                    "autoencoder always stay frozen, and queries are no rows of an embedding; remove it"
                )
        return values

    @model_validator(mode="after")
    def _only_what_learns(self) -> "MetaQueryRecipe":
        for group, block in self.tune.items():
            if block.mode == "frozen":
                continue
            if group in ("llm", "merger", "deepstack_mergers", "vision", "embed", "lm_head"):
                raise ValueError(
                    f"`tune.{group}`: Qwen3-VL stays frozen, for no gradient reaches the prompt; train "
                    f"{', '.join(GROUPS)}"
                )
            if block.mode == "lora":
                raise ValueError(f"`tune.{group}`: adapters are not for {group}; set `mode: full` or `frozen`")
            if block.layers is not None:
                raise ValueError(f"`tune.{group}.layers`: {group} is trained whole or not at all; remove it")
        return self

    @model_validator(mode="after")
    def _masks(self) -> "MetaQueryRecipe":
        if self.model.attention == "flash":
            raise ValueError("`model.attention`: flash takes no mask, under which queries see a prompt; use auto")
        return self

    @property
    def settings(self) -> Settings:
        """What a trained model needs to draw, beside weights."""
        return Settings(
            mllm=self.model.name,
            mllm_revision=self.model.revision,
            sana=self.sana.name,
            sana_revision=self.sana.revision,
            queries=self.queries.number,
            system=self.queries.system,
            caption_tokens=self.queries.caption_tokens,
            image_tokens=self.queries.image_tokens,
            layers=self.connector.layers,
            width=self.connector.width,
            size=self.flow.size,
            train_shift=self.flow.train_shift,
            sample_shift=self.flow.sample_shift,
            media=self.media,
        )


RECIPE = MetaQueryRecipe
