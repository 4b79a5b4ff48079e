"""The block `model.vision` of the recipes that train a model with a swapped tower. Importing this loads no torch."""

from typing import Annotated, Any, Literal

from pydantic import Field

from qvl_core.recipe import blocks


class Vision(blocks.Block):
    """Another vision encoder in the place of the model's own: the arguments of `qvl_vision.swap`."""

    encoder: str | Annotated[list[str], Field(min_length=1)]
    """Name (`qvl-vision list`), timm:NAME, hub id or folder; several are joined by channels."""
    merger: str = "linear"
    """Name of the merger (`qvl-vision list --mergers`): what makes the encoder's tokens fit the language model."""
    layout: Literal["auto", "patches", "image"] = "auto"
    """patches: pictures of any size; image: one size, any number of tokens; auto: patches where possible."""
    feature_layer: int | None = None
    """Encoder layer that is read, as an index of its hidden states (-2: second-last); default: the usual one."""
    feature_select: Literal["patch", "all"] = "patch"
    """patch: patch tokens only; all: with CLS and register tokens."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a picture; default: those of the encoder's own picture size."""
    merge: Annotated[int, Field(ge=1)] | None = None
    """Side of the square of patches that becomes one token; default: the merger's usual one."""
    deepstack: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Encoder layers that also go into the first layers of the language model, each by a merger of its own."""
    encoder_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of a module of one's own (registered by an installed package or --plugin)."""
    merger_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the merger, such as {queries: 32} of the resampler."""
    input_norm: bool = False
    """A LayerNorm before the merger."""
    calibrate: bool = False
    """Scale the new merger so that its tokens are as large as text embeddings."""

    @property
    def new_merger(self) -> bool:
        """Whether the merger starts from random weights: all but Qwen's own behind Qwen's own tower do."""
        own = self.encoder in ("native", ["native"]) and self.merger == "native"
        return not own or self.merge not in (None, 2) or self.input_norm

    @property
    def has_deepstack(self) -> bool:
        """Whether there are DeepStack mergers; the native pair brings its own."""
        return bool(self.deepstack) or (self.encoder in ("native", ["native"]) and self.merger == "native")


class Model(blocks.Model):
    """Which Qwen3-VL to train, how to hold it, and with which vision encoder."""

    vision: Vision | None = None
    """Another vision encoder, put in before training; default: the model keeps the tower that it has."""
