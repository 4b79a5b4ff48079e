"""`qvl-edit export`: what was trained, for diffusers and ComfyUI. A folder appears whole or not at all.

A run of adapters, unless they are merged:
    OUT/pytorch_lora_weights.safetensors      diffusers: `pipeline.load_lora_weights(OUT)`
    OUT/comfyui_lora.safetensors              ComfyUI

Any other run, and with `merge`:
    OUT/model_index.json, transformer/, ...   diffusers: `DiffusionPipeline.from_pretrained(OUT)`

Either has edit.json, so that `qvl-edit edit OUT` draws with the sizes and settings of training.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.files import new_folder, writing
from qvl_core.qwen3vl.groups import is_adapter
from qvl_core.qwen3vl.load import quiet
from qvl_edit.saving import LORA, save_adapters
from qvl_edit.trained import Trained, adapter_config, find_trained, open_trained

COMFYUI = "comfyui_lora.safetensors"
INDEX = "model_index.json"
SHARD = "5GB"
PREFIX = "transformer."  # of diffusers' keys


def export(model: str, out: Path, merge: bool = False, shard: str = SHARD) -> Path:
    """Write the model that `model` names (see `trained`) to the new folder `out`.

    merge  fold adapters into the weights, in fp32 and rounded once to the type that they are stored in
    shard  largest file of the transformer

    Raises BadInput for a folder that is there already, and for `merge` where there is no adapter.
    """
    found = find_trained(model)
    adapted = found.adapters is not None or any(map(is_adapter, found.weights))
    if merge and not adapted:
        raise BadInput(f"{model}: has no adapters to merge; leave --merge out.")
    more = found.transformer.parent == found.folder or any(not is_adapter(name) for name in found.weights)
    with new_folder(out) as aside:
        if adapted and not merge:
            write_adapters(found, aside)
        if merge or more or not adapted:
            write_pipeline(found, aside, merge, shard)
        else:
            found.settings.write(aside)
    kinds = [name for name in (INDEX, LORA, COMFYUI) if (out / name).is_file()]
    print(f"{out}: {', '.join(kinds)}.")
    return out


def write_adapters(found: Trained, folder: Path) -> None:
    """Adapters in the keys of diffusers and of ComfyUI."""
    if found.adapters is not None:
        with writing(folder):
            shutil.copyfile(found.adapters, folder / LORA)
    else:
        save_adapters(folder, found.weights, adapter_config(found))
    with safe_open(folder / LORA, "pt") as file:
        about = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    save_file(comfyui(weights, about), folder / COMFYUI)


def comfyui(weights: dict[str, Tensor], about: dict[str, Any]) -> dict[str, Tensor]:
    """Adapters as ComfyUI reads them: down and up, and an alpha that over the rank is what they are multiplied by.

    weights  by diffusers' keys
    about    peft's configuration, each key with diffusers' prefix

    Raises BadInput for what these keys do not say.
    """
    config = {key.removeprefix(PREFIX): value for key, value in about.items()}
    if config.get("use_dora"):
        raise BadInput("tune: adapters with `dora` are not written for ComfyUI; export them with --merge.")
    names = {"lora_A": "lora_down", "lora_B": "lora_up"}
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        module, matrix, _ = key.removeprefix(PREFIX).rsplit(".", 2)
        found[f"diffusion_model.{module}.{names[matrix]}.weight"] = value
        if matrix == "lora_A":
            alphas, rank = config.get("alpha_pattern") or {}, len(value)
            alpha = alphas.get(get_pattern_key(alphas, module), config.get("lora_alpha", rank))
            alpha *= math.sqrt(rank) if config.get("use_rslora") else 1
            found[f"diffusion_model.{module}.alpha"] = torch.tensor(float(alpha))
    return found


def write_pipeline(found: Trained, folder: Path, merge: bool, shard: str) -> None:
    """A whole folder of diffusers; its index, without which nothing loads it, comes last."""
    dtype = stored_type(found.transformer)
    transformer = open_trained(found, dtype, adapter_type=torch.float32)
    if merge:
        merged(transformer)
    elif hasattr(transformer, "peft_config"):
        transformer.unload_lora()
    with writing(folder):
        for part in sorted(found.checkpoint.iterdir()):
            if part.is_dir() and part.name != "transformer" and not part.name.startswith("."):
                shutil.copytree(part, folder / part.name)
    with quiet(bars=False):
        transformer.save_pretrained(folder / "transformer", max_shard_size=shard)
    settings = found.settings.model_copy(update={"base": str(folder.resolve()), "revision": None, "transformer": None})
    settings.write(folder)
    with writing(folder):
        shutil.copyfile(found.checkpoint / INDEX, folder / INDEX)


@torch.no_grad()
def merged(transformer: Any) -> None:
    """Fold adapters into the weights they stand beside, one layer after the other in fp32, and remove them."""
    for layer in transformer.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            dtype = base.weight.dtype
            base.float()
            layer.merge()
            base.to(dtype)
    transformer.unload_lora()


def stored_type(folder: Path) -> torch.dtype:
    """The type of the weights in a folder. Raises BadInput if there are none."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            return file.get_tensor(next(iter(file.keys()))).dtype
    raise BadInput(f"{folder}: holds no weights (*.safetensors); copy the checkpoint again.")
