"""Adapter folders as peft and the tools around it write them, read into one form.

peft's own folders need nothing. Unsloth writes `target_modules` as a pattern; LLaMA-Factory calls fully trained modules
`additional_target` and writes peft's `modules_to_save`; ms-swift lays a fully trained tower beside the adapter as
vit.safetensors. Keys of older layouts of the model (transformers before 4.52, vLLM) and with an adapter's name in them
are renamed by the short list below; whatever else a file holds stays as it is, and is an error where it is not known.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from qvl_core.errors import BadInput

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TOWER_FILE = "vit.safetensors"

RENAMES = (
    (r"^(?!base_model\.)", "base_model.model."),
    (r"\.modules_to_save\.default\.|\.base_layer\.", "."),
    (r"(\.lora_\w+)\.default(?=\.|$)", r"\1"),
    (r"\.lora_magnitude_vector\.weight$", ".lora_magnitude_vector"),
    (r"^base_model\.model\.visual\.", "base_model.model.model.visual."),
    (r"^base_model\.model\.language_model\.lm_head\.", "base_model.model.lm_head."),
    (r"^base_model\.model\.language_model\.(model\.)?", "base_model.model.model.language_model."),
    (r"^base_model\.model\.model\.(layers|norm|embed_tokens)\.", r"base_model.model.model.language_model.\1."),
)

_KNOWN = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "target_parameters",
    "layers_to_transform", "layers_pattern", "modules_to_save", "ensure_weight_tying", "bias", "lora_bias",
    "fan_in_fan_out", "use_rslora", "use_dora", "trainable_token_indices",
    "lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_config", "megatron_core", "qalora_group_size", "runtime_config",
}  # fmt: skip
"""Keys of adapter_config.json that are obeyed here, or say how an adapter was trained and not what it computes."""

# First values that change the base's own weights; the adapter alone then means nothing on it.
_CHANGED_BASES = re.compile("pissa|olora|loftq|corda|lora_ga", re.IGNORECASE)


def read(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """peft's configuration, and all values under today's keys. Raises BadInput for what is no adapter, or not LoRA."""
    from peft import LoraConfig, PeftConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: no {name} there, so it is no adapter; name the final/ folder of a LoRA run.")
    place = folder / CONFIG_FILE
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unexpected keyword arguments")  # an error below
            config: Any = PeftConfig.from_pretrained(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{place}: cannot be read ({error}); copy it again.") from error
    if not isinstance(config, LoraConfig):
        raise BadInput(f"{place}: {config.peft_type.value} is not LoRA; merge it with the tool that made it.")
    _check_keys(place)
    if config.target_parameters:
        raise BadInput(f"{place}: LoRA on fused experts (target_parameters) is not known; merge it with peft.")
    if isinstance(config.init_lora_weights, str) and _CHANGED_BASES.match(config.init_lora_weights):
        raise BadInput(
            f"{place}: it starts from {config.init_lora_weights}, which changes the base's weights; save it as their "
            "difference (peft: save_pretrained with path_initial_model_for_weight_conversion)."
        )
    config.init_lora_weights = True

    values: dict[str, Tensor] = {}
    renamed = False
    for file in (folder / WEIGHTS_FILE, folder / TOWER_FILE):
        if file.is_file():
            try:
                found = load_file(file)
            except SafetensorError as error:
                raise BadInput(f"{file}: cannot be read ({error}); copy it again.") from error
            for key, value in found.items():
                values[today(key)] = value
                renamed |= ".lora_" in key and _module(key) != _module(today(key))
    if renamed:  # its patterns are of the older layout as well
        _target_by_name(config, values)
    return config, values


def _check_keys(place: Path) -> None:
    """Raise BadInput for a key that says something which is not known: it may decide what the adapter computes.

    Other versions of peft have other keys; where their value is none or peft's own default, they say nothing.
    """
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    for key, value in json.loads(place.read_text(encoding="utf-8")).items():
        if key in _KNOWN or not value or value == defaults.get(key):
            continue
        if key in defaults:
            raise BadInput(f"{place}: {key} is not known here; use the adapter with peft, or merge it there.")
        raise BadInput(
            f"{place}: {key} is known neither here nor to the peft that is installed; merge the adapter with the tool "
            "that made it, or remove the key if it says nothing of what the adapter computes."
        )


def today(key: str) -> str:
    """The key that peft gives the same parameter now."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _module(key: str) -> str:
    return key.removeprefix("base_model.model.").split(".lora_")[0]


def _target_by_name(config: Any, values: dict[str, Tensor]) -> None:
    """Let the file say what is adapted, and by which rank."""
    ranks = {_module(key): len(value) for key, value in values.items() if key.endswith(".lora_A.weight")}
    if config.alpha_pattern:
        raise BadInput("an adapter of an older layout whose alphas differ by module is not known; merge it with peft.")
    config.target_modules = set(ranks)
    config.exclude_modules, config.layers_to_transform, config.layers_pattern = None, None, None
    config.rank_pattern = {re.escape(name): rank for name, rank in ranks.items() if rank != config.r}
