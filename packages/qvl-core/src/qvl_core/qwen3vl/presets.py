"""The exact shapes of the released Qwen3-VL models as transformers configurations: no checkpoint, no network.

count_parameters(config("Qwen3-VL-4B"))
"""

import re
from typing import TYPE_CHECKING, Any

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.groups import GROUPS, group_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

_SMALL_TOWER = {
    "depth": 24,
    "hidden_size": 1024,
    "num_heads": 16,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
_LARGE_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "num_heads": 16,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}
_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1}

# hidden, layers, query heads, key-value heads, intermediate, tied embeddings, tower, mixture of experts
_SHAPES: dict[str, tuple[int, int, int, int, int, bool, dict[str, Any], dict[str, int]]] = {
    "Qwen3-VL-2B": (2048, 28, 16, 8, 6144, True, _SMALL_TOWER, {}),
    "Qwen3-VL-4B": (2560, 36, 32, 8, 9728, True, _SMALL_TOWER, {}),
    "Qwen3-VL-8B": (4096, 36, 32, 8, 12288, False, _LARGE_TOWER, {}),
    "Qwen3-VL-32B": (5120, 64, 64, 8, 25600, False, _LARGE_TOWER, {}),
    "Qwen3-VL-30B-A3B": (2048, 48, 32, 4, 6144, False, _LARGE_TOWER, _EXPERTS),
}
PRESETS = tuple(_SHAPES)


def preset_for(name: str) -> str | None:
    """The preset of a model name, such as `Qwen/Qwen3-VL-4B-Instruct` or a folder `.../Qwen3-VL-4B-mine`; else None."""
    for preset in PRESETS:
        if re.search(rf"{preset}(?![A-Za-z0-9])", name, re.IGNORECASE):
            return preset
    return None


def config(preset: str) -> "PreTrainedConfig":
    """The configuration of a preset; BadInput if there is none of that name."""
    if preset not in _SHAPES:
        raise BadInput(f"no shape preset {preset!r}; there are {', '.join(PRESETS)}.")
    hidden, layers, heads, kv_heads, intermediate, tied, tower, experts = _SHAPES[preset]
    text = {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "intermediate_size": intermediate,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        **experts,
    }
    from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

    kind = Qwen3VLMoeConfig if experts else Qwen3VLConfig
    return kind(
        text_config=text,
        vision_config={**tower, "out_hidden_size": hidden, "num_position_embeddings": 2304},
        tie_word_embeddings=tied,
    )


def meta_model(config: "PreTrainedConfig") -> "nn.Module":
    """The model of a configuration without storage: names, shapes and ties are real, values are not there."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def count_parameters(config: "PreTrainedConfig") -> dict[str, int]:
    """Parameters of each group, shared ones counted once (a tied head counts as `embed`), so the sum is the model's."""
    counts = dict.fromkeys(GROUPS, 0)
    for name, parameter in meta_model(config).named_parameters():
        counts[group_of(name)] += parameter.numel()
    return counts
