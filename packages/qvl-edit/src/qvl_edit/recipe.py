"""The recipe of editing: the common blocks, which samples a step learns from, and the sizes of their pictures."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from qvl_core.recipe import blocks
from qvl_core.recipe.drawing import DrawingBatch, DrawingEvaluate, DrawingTrain, unusual
from qvl_edit.groups import UNUSED
from qvl_edit.weights import source_weights, task_weights

Weight = Annotated[float, Field(ge=0)]
Times = Literal["uniform", "logit_normal", "mode"]


class EditQuantization(blocks.Quantization):
    """Frozen weights in fewer bits, under adapters (QLoRA: Dettmers et al. 2023, arXiv:2305.14314)."""

    groups: list[str] = ["transformer_blocks"]  # noqa: RUF012 (pydantic copies it)
    """Pieces of names of modules whose linear layers are held so, as `tune` names them."""


class EditModel(blocks.Model):
    """Which Qwen-Image to train, and how to hold its transformer."""

    name: str
    """Hub id or local folder in the layout of diffusers, or `tiny` (a small random one built on the spot)."""
    quantization: Annotated[
        EditQuantization | None,
        BeforeValidator(blocks.as_quantization, json_schema_input_type=EditQuantization | str | None),
    ] = None
    """Hold the frozen transformer in fewer bits: `nf4`, `int8`, or a block."""

    @model_validator(mode="before")
    @classmethod
    def _one_attention(cls, values: Any) -> Any:
        for key in unusual(cls, values, ("attention",)):
            raise ValueError(f"`{key}`: the transformer has one way to attend, torch's own; remove it")
        return values


class Mixture(blocks.Block):
    """Which samples a step learns from."""

    tasks: Annotated[
        dict[str, Weight] | None,
        BeforeValidator(task_weights, json_schema_input_type=dict[str, Weight] | str | None),
    ] = None
    """Weights of tasks, `a=0.5,b=1.2`; one that is not named is not trained. Default: each sample counts the same."""
    sources: Annotated[
        dict[int, Weight] | None,
        BeforeValidator(source_weights, json_schema_input_type=dict[int, Weight] | str | None),
    ] = None
    """Weights of the number of sources of a step, `0=1,1=1,2=1,3=0`; default: as often as the samples have them."""
    inverse: bool = True
    """Learn the way back as well, from target to source, where a sample has a text for it and one source."""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Part of the samples whose text is left out (made empty), so that guidance has something to compare with."""


class Pictures(blocks.Block):
    """How pictures are brought to size: the same for sources and targets, in extraction, training and editing."""

    size: Annotated[int, Field(ge=16)] | None = None
    """Side in pixels of a square with the area of a picture in training; default: the checkpoint's (1024)."""
    vl_size: Annotated[int, Field(ge=28)] | None = None
    """The same of a source as the text encoder is shown it; default: the checkpoint's (384, or 1024); 2.1 has
    none but `size`."""
    vae_batch: Annotated[int, Field(ge=1)] = 1
    """Pictures that the autoencoder encodes at once; more than one changes last bits, and needs memory for all."""


class Flow(blocks.Block):
    """What is learned from a target."""

    times: Times = "uniform"
    """How noise levels are drawn, before the checkpoint's shift: all alike, mostly the middle ones, or in between."""


class Stored(blocks.Block):
    """What was computed before training."""

    embeddings: str | None = None
    """Folder that `qvl-edit extract` writes: texts with their pictures, as the text encoder reads them."""
    layout: Literal["shards", "files"] = "shards"
    """shards: found in `embeddings`; files: a pickled one for each text, as upstream has it, named by the rows."""
    latents: str | None = None
    """Folder that `qvl-edit extract` writes beside it, if it is named: pictures as the autoencoder gives them; default:
    each step opens and encodes its own."""


class Sampling(blocks.Block):
    """How pictures are drawn: in previews, and by `qvl-edit edit` if nothing else is said."""

    guidance: Annotated[float, Field(ge=0)] | None = None
    """How much more than the negative text the text weighs; at most 1: no guidance. Default: the checkpoint's (4, or 1
    of Qwen-Image-2.1)."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps from noise to picture; default: the checkpoint's (40, if it names no levels of its own)."""
    negative: str = " "
    """What is not to be drawn."""
    shift: Annotated[float, Field(gt=0)] | None = None
    """Shift of noise levels, for models of few steps (3 for Qwen-Image-Lightning); default: the checkpoint's."""
    preview: Annotated[int, Field(ge=0)] | None = None
    """Steps of training between pictures for report.html; 0: none; default: with each evaluation."""


class EditOptim(blocks.Optim):
    """AdamW."""

    lr: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate of every group that names none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.03
    """Decoupled weight decay; never applied to norms and biases."""


class EditSpeed(blocks.Speed):
    """What makes a step fast, or lets it fit. Editing has `fused_optimizer` and `offload_blocks`; the others stay as
    they are."""

    offload_blocks: Annotated[int, Field(ge=0)] = 0
    """Blocks of the transformer (of 60; 2.1: 32) whose frozen weights wait in the host's memory and come to the device
    for their turn: for cards that do not hold all of them. Needs `train.recompute`, and changes no number."""

    @model_validator(mode="before")
    @classmethod
    def _what_acts(cls, values: Any) -> Any:
        reasons = {
            "label_rows": "no logits are computed",
            "linear_patches": "pictures are read by `qvl-edit extract`",
            "frozen_features": "the text encoder is no part of training",
            "cache_features": "embeddings are stored before (`stored.embeddings`)",
            "offload": "activations stay on the device (`train.recompute` makes them few, `offload_blocks` weights)",
            "compile": "layers are not compiled",
        }
        for key in unusual(cls, values, reasons):
            raise ValueError(f"`{key}` does nothing in editing, where {reasons[key]}: remove it")
        return values


class EditRecipe(blocks.Recipe):
    """The transformer of Qwen-Image or Qwen-Image-Edit: trained whole, in parts, or by adapters."""

    indifferent: ClassVar[dict[str, Any]] = blocks.Recipe.indifferent | {"stored": True, "pictures": {"vae_batch"}}

    model: EditModel
    mixture: Mixture = Mixture()
    pictures: Pictures = Pictures()
    flow: Flow = Flow()
    stored: Stored = Stored()
    sampling: Sampling = Sampling()
    batch: DrawingBatch
    optim: EditOptim = EditOptim()
    train: DrawingTrain
    evaluate: DrawingEvaluate = DrawingEvaluate()
    speed: EditSpeed = EditSpeed()

    @model_validator(mode="before")
    @classmethod
    def _sizes_are_pictures(cls, values: Any) -> Any:
        if isinstance(values, dict) and blocks.Media.model_validate(values.get("media", {})) != blocks.Media():
            raise ValueError("`media` is of Qwen3-VL, which is not here; `pictures` has the sizes: remove it")
        return values

    @model_validator(mode="after")
    def _something_is_trained(self) -> "EditRecipe":
        if all(block.mode == "frozen" for block in self.tune.values()):
            raise ValueError("`tune` trains nothing; name `transformer` or pieces of its modules' names, lora or full")
        return self

    @model_validator(mode="after")
    def _tasks_have_the_weights(self) -> "EditRecipe":
        for source in self.data.train:
            if source.weight != 1:
                raise ValueError(f"`weight` of {source.source}: tasks are weighted in `mixture.tasks`; remove it")
        return self

    @model_validator(mode="after")
    def _blocks_can_wait(self) -> "EditRecipe":
        if self.speed.offload_blocks and self.parallel.planned not in ("single", "ddp"):
            raise ValueError(
                f"`speed.offload_blocks`: {self.parallel.planned} shares weights among devices; set it to 0, or "
                "parallel.strategy: ddp"
            )
        if self.speed.offload_blocks and not self.train.recompute:
            raise ValueError(
                "`speed.offload_blocks`: the backward would keep all blocks on the device; set train.recompute: true"
            )
        if self.speed.offload_blocks and self.model.quantization is not None:
            raise ValueError("`speed.offload_blocks`: weights in fewer bits stay on the device; remove one of the two")
        return self

    @model_validator(mode="after")
    def _groups_are_of_this_transformer(self) -> "EditRecipe":
        for name, block in self.tune.items():
            if name == UNUSED and block.mode != "frozen":
                raise ValueError(f"`tune.{name}`: no prediction depends on it; remove it")
            if block.layers is not None:
                raise ValueError(f"`tune.{name}.layers`: name blocks of the transformer instead, such as blocks.59.")
            if block.mode == "lora" and block.init != "zero":
                raise ValueError(
                    f"`tune.{name}.init`: an adapter here begins at zero, since diffusers puts it upon the untouched "
                    "weights; remove it"
                )
            if block.mode == "lora" and block.dora and self.model.quantization is not None:
                raise ValueError(f"`tune.{name}.dora`: needs full-precision weights; remove it, or model.quantization")
        return self


RECIPE = EditRecipe
