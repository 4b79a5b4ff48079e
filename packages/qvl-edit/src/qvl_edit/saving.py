"""What a run leaves in final/, as diffusers reads it.

FOLDER/pytorch_lora_weights.safetensors   adapters: `pipeline.load_lora_weights(FOLDER)`
FOLDER/transformer/                       a transformer of which more was trained: `from_pretrained(FOLDER / ...)`
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import QwenImageLoraLoaderMixin
from torch import Tensor

from qvl_core.qwen3vl.groups import is_adapter

LORA = "pytorch_lora_weights.safetensors"
ADAPTER = ".default."  # between the name of a matrix of LoRA and `weight`, in peft's models


def save_adapters(folder: Path, weights: Mapping[str, Tensor], config: Any) -> None:
    """Adapters by parameter name, if there are some; config is peft's."""
    layers = {name.replace(ADAPTER, "."): value.contiguous() for name, value in weights.items() if is_adapter(name)}
    if layers:
        QwenImageLoraLoaderMixin.save_lora_weights(
            folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config.to_dict()
        )


def save_transformer(folder: Path, weights: Mapping[str, Tensor], open_base: Callable[[], Any]) -> None:
    """The transformer that `open_base` gives with weights by parameter name in their place, if there are some."""
    whole = {name.replace(".base_layer.", "."): value for name, value in weights.items() if not is_adapter(name)}
    if whole:
        base = open_base()
        _, unknown = base.load_state_dict(whole, strict=False)
        assert not unknown, f"the base has no {unknown[0]}"
        base.save_pretrained(folder / "transformer")
