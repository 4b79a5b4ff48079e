"""The module groups that a recipe's `tune` block names. Groups are data: a name and a pattern of parameter names.

A method with modules of its own hands a larger mapping to the functions here and in `lora`:

    groups = {**GROUPS, "connector": r"connector\\..*"}
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# Full-match patterns of parameter names (transformers 5.23), in the order of the tune table. They are disjoint.
GROUPS: Mapping[str, str] = {
    "llm": r"model\.language_model\.(layers|norm)\..*",
    "merger": r"model\.visual\.merger\..*",
    "deepstack_mergers": r"model\.visual\.deepstack_merger_list\..*",
    "vision": r"model\.visual\.(?!merger\.|deepstack_merger_list\.).*",
    "embed": r"model\.language_model\.embed_tokens\..*",
    "lm_head": r"lm_head\..*",
}

# Vectors (norms, biases, LoRA magnitudes) are known by their shape, tables and learned tokens by their name.
_TABLES = re.compile(
    r"(.*\.)?(embed_tokens|pos_embed|position_embeddings?|cls_token|mask_token|register_tokens|queries|lora_embedding_[AB])(\..*)?"
)


def group_of(name: str, groups: Mapping[str, str] = GROUPS) -> str:
    """The group that the parameter `name` belongs to; adapter parameters belong to the module they adapt.

    Raises KeyError for a name that no pattern covers: a silent leftover would be neither trained nor reported.
    """
    for group, pattern in groups.items():
        if re.fullmatch(pattern, name):
            return group
    raise KeyError(f"parameter {name!r} belongs to none of the groups {', '.join(groups)}")


def linear_targets(model: "nn.Module", group: str, groups: Mapping[str, str] = GROUPS) -> list[str]:
    """Names of the linear layers of a group, in module order: what LoRA adapts and quantisation holds in fewer bits.

    The fused experts of the MoE models are parameters, not linear layers, and stay as they are.
    """
    from torch import nn

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and re.fullmatch(groups[group], f"{name}.weight")
        and not is_adapter(f"{name}.weight")
    ]


def layers_of(model: "nn.Module", group: str) -> list[str]:
    """Names of the transformer layers of a group, first to last; empty for a group without layers."""
    core: Any = getattr(model, "model", None)
    lists = {"llm": lambda: core.language_model.layers, "vision": lambda: core.visual.blocks}
    if core is None or group not in lists:
        return []
    layers = {id(layer) for layer in lists[group]()}
    return [name for name, module in model.named_modules() if id(module) in layers]


def is_adapter(name: str) -> bool:
    """Whether the parameter `name` was added by LoRA."""
    return ".lora_" in name


def is_tied(model: "nn.Module") -> bool:
    """Whether embedding and lm_head are one matrix."""
    names = {name for name, _ in model.named_parameters()}
    return hasattr(model, "lm_head") and names.isdisjoint({"lm_head.weight", "lm_head.base_layer.weight"})


def decays(name: str, parameter: "Tensor") -> bool:
    """Whether weight decay applies: to matrices and convolutions, not to norms, biases and embeddings."""
    return parameter.ndim >= 2 and not _TABLES.fullmatch(name)
