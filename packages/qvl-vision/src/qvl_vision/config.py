"""Configurations of a Qwen3-VL with another vision tower: subclasses with model types of their own.

A model type of its own is what keeps a swapped checkpoint from being read as a stock one: the stock classes ignore what
stands in `vision_config`, build their default tower and leave it random.
"""

from typing import Any

from transformers import PreTrainedConfig, Qwen3VLConfig, Qwen3VLMoeConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig


class QVLVisionConfig(PreTrainedConfig):
    """Encoder, merger, and how pictures become tokens.

    encoders         one entry for each encoder (several are joined by channels): see `qvl_vision.encoders.Spec`
    merger, merger_options, input_norm   see `qvl_vision.mergers`; input_norm puts a LayerNorm before it
    layout           patches: any picture size, tokens on its grid; image: one fixed picture size
    image_size       [height, width] of pictures in the layout `image`
    grid             [height, width] of a picture in patches in the layout `image`; [1, N] where tokens form no grid
    feature_layer    index of the encoder's hidden states; None: its output
    feature_select   patch: patch tokens only; all: with CLS and register tokens
    deepstack_visual_indexes   encoder layers that also go into the first layers of the language model; empty: off
    merger_trained   whether the merger is more than the random one that a swap begins with
    spatial_merge_size, patch_size, temporal_patch_size, out_hidden_size   as in Qwen3VLVisionConfig
    hidden_size      width of the encoder's tokens
    """

    model_type = "qvl_vision"
    base_config_key = "vision_config"

    encoders: list[dict[str, Any]] | None = None
    merger: str = "linear"
    merger_options: dict[str, Any] | None = None
    input_norm: bool = False
    merger_trained: bool = True
    layout: str = "patches"
    image_size: list[int] | None = None
    grid: list[int] | None = None
    feature_layer: int | None = None
    feature_select: str = "patch"
    deepstack_visual_indexes: list[int] | tuple[int, ...] = ()
    spatial_merge_size: int = 1
    patch_size: int = 16
    temporal_patch_size: int = 1
    in_channels: int = 3
    hidden_size: int = 768
    out_hidden_size: int = 2560
    initializer_range: float = 0.02

    # What plans of memory and time ask of Qwen's own tower; of a convolutional net this is the nearest to it.
    @property
    def depth(self) -> int:
        """Blocks of the encoder (of several: of all)."""
        return sum(_depth(encoder["config"]) for encoder in self.encoders or [])

    @property
    def num_heads(self) -> int:
        return max((encoder["config"].get("num_attention_heads", 1) for encoder in self.encoders or []), default=1)

    @property
    def intermediate_size(self) -> int:
        """Width of the MLPs, about four times the tokens' where the encoder does not say."""
        said = [
            config.get("intermediate_size") or round(config.get("mlp_ratio", 4) * encoder["width"])
            for encoder in self.encoders or []
            for config in [encoder["config"]]
        ]
        return sum(said)


def _depth(config: dict[str, Any]) -> int:
    """Blocks of an encoder of this configuration."""
    stages = config.get("depths") or [config.get("num_hidden_layers") or config.get("depth") or 1]
    return sum(stages)


def has_new_merger(config: Any) -> bool:
    """Whether a model of this configuration has a swapped tower whose merger is still random."""
    return not getattr(config.vision_config, "merger_trained", True)


class QVLConfig(Qwen3VLConfig):
    """Qwen3-VL (dense) with a tower of `QVLVisionConfig`."""

    model_type = "qvl_qwen3_vl"
    sub_configs_defaults = {"vision_config": QVLVisionConfig, "text_config": Qwen3VLTextConfig}  # noqa: RUF012


class QVLMoeConfig(Qwen3VLMoeConfig):
    """Qwen3-VL with experts and a tower of `QVLVisionConfig`."""

    model_type = "qvl_qwen3_vl_moe"
    sub_configs_defaults = {"vision_config": QVLVisionConfig, "text_config": Qwen3VLMoeTextConfig}  # noqa: RUF012
