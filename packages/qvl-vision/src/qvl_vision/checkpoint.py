"""Swapped models in folders, and mergers in files of their own.

A swapped model's folder is an ordinary one (config.json, model.safetensors, tokenizer, processor): `load`, or
`AutoModelForImageTextToText.from_pretrained(folder)` after `import qvl_vision.model`.
"""

import json
from pathlib import Path
from typing import Any

import torch

from qvl_core.errors import BadInput
from qvl_core.files import new_folder
from qvl_core.qwen3vl.load import Precision, load_model, quiet, stored_precision
from qvl_core.recipe.blocks import Model
from qvl_vision.config import QVLVisionConfig

# What a merger has to have in common with the model it is put into.
_MATCHES = ("merger", "merger_options", "input_norm", "hidden_size", "out_hidden_size", "spatial_merge_size")


def save(model: Any, processor: Any, folder: str | Path) -> Path:
    """Write a swapped model and its processor to a new folder, whole or not at all, and return it."""
    swapped_config(model)
    with new_folder(Path(folder)) as aside, quiet(bars=False):
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
    return Path(folder)


def load(
    folder: str | Path, precision: Precision | None = None, device: "str | torch.device" = "cpu"
) -> tuple[Any, Any]:
    """A swapped model in evaluation mode, in `precision` (default: as it is stored), and its processor.

    Raises BadInput for another kind of model, missing weights, and encoders that are not registered.
    """
    precision = precision or stored_precision(str(folder))
    model, processor = load_model(Model(name=str(folder)), precision=precision, device=device)
    swapped_config(model, str(folder))
    return model, processor


def save_merger(model: Any, file: str | Path) -> Path:
    """Write the merger (and DeepStack mergers) to a safetensors file, with what it belongs to."""
    from safetensors.torch import save_file

    config = swapped_config(model)
    values = {
        name: value.detach().cpu().contiguous()
        for name, value in model.model.visual.state_dict().items()
        if name.startswith(_PARTS)
    }
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = _about(config) | {"merger_trained": config.merger_trained}
    save_file(values, file, metadata={"format": "pt", "qvl_vision": json.dumps(about)})
    return file


def load_merger(model: Any, file: str | Path) -> Any:
    """Put the merger of a file into a swapped model, in place.

    Raises BadInput if it was trained for another encoder, width or kind of merger, or does not fit key by key.
    """
    from safetensors import SafetensorError, safe_open

    config, file = swapped_config(model), Path(file)
    try:
        with safe_open(file, framework="pt") as stored:
            about = json.loads((stored.metadata() or {}).get("qvl_vision", "{}"))
            values = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read as a merger ({error}).") from None
    for key, mine in _about(config).items():
        if about.get(key) != mine:
            raise BadInput(
                f"{file}: its merger has {key} {about.get(key)} but this model {mine}; "
                "swap with the encoder and merger that it was trained with."
            )
    own = {name: value for name, value in model.model.visual.state_dict().items() if name.startswith(_PARTS)}
    if values.keys() != own.keys():
        name = min(values.keys() ^ own.keys())
        raise BadInput(f"{file}: {name} is only on one side; swap with the merger that it was trained with.")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    config.merger_trained = about.get("merger_trained", True)
    return model


def mark_merger_trained(model: Any) -> None:
    """Let a swapped model's configuration say that its merger is no longer random; a stock model stays as it is."""
    if isinstance(model.config.vision_config, QVLVisionConfig):
        model.config.vision_config.merger_trained = True


def swapped_config(model: Any, name: str = "the model") -> QVLVisionConfig:
    """The vision configuration of a swapped model. Raises BadInput for a stock one."""
    vision = model.config.vision_config
    if not isinstance(vision, QVLVisionConfig):
        raise BadInput(f"{name}: has Qwen's own vision tower, not a swapped one; make one with qvl-vision swap.")
    return vision


_PARTS = ("merger.", "deepstack_merger_list.")


def _about(config: QVLVisionConfig) -> dict[str, Any]:
    encoders = [{"name": encoder["name"], "family": encoder["family"]} for encoder in config.encoders or []]
    values = {key: getattr(config, key) for key in _MATCHES} | {
        "encoders": encoders,
        "deepstack": list(config.deepstack_visual_indexes),
        "feature_layer": config.feature_layer,
        "feature_select": config.feature_select,
    }
    return dict(json.loads(json.dumps(values)))
