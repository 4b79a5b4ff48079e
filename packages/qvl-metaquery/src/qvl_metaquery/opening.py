"""From names to the parts of a model: Qwen3-VL, Sana's transformer and coder, and weights of an earlier stage."""

import json
from pathlib import Path
from typing import Any

import torch

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import find_folder, load_model
from qvl_core.qwen3vl.whole import load_part
from qvl_core.recipe.blocks import Model
from qvl_metaquery.connector import Connector
from qvl_metaquery.model import MetaQuery
from qvl_metaquery.settings import Settings

SANA_FILES = ("transformer/*", "vae/*", "scheduler/*", "*.json")  # not its text encoder, which Qwen3-VL replaces


def open_sana(name: str, revision: str | None = None) -> Path:
    """The folder of a Sana in the layout of diffusers. Raises BadInput for a name that is none."""
    folder = find_folder(name, revision, "sana.name", SANA_FILES)
    for part in ("transformer", "vae"):
        if not (folder / part / "config.json").is_file():
            raise BadInput(f"sana.name: {name} has no {part}/config.json; name a Sana in the layout of diffusers.")
    return folder


def open_transformer(folder: Path, dtype: torch.dtype) -> Any:
    """Sana's transformer in `folder`. Raises BadInput for another model's."""
    from diffusers import SanaTransformer2DModel

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if kind != "SanaTransformer2DModel":
        raise BadInput(f"{folder}: holds a {kind}, and conditions are learned for Sana; use SanaTransformer2DModel.")
    return load_part(SanaTransformer2DModel, folder, dtype)


def sample_shift(settings: Settings, sana: Path) -> float:
    """The shift of noise levels in sampling: of the settings, else of Sana's scheduler. Raises BadInput without one."""
    if settings.sample_shift is not None:
        return settings.sample_shift
    file = sana / "scheduler" / "scheduler_config.json"
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for key in ("flow_shift", "shift"):
        if isinstance(values.get(key), int | float):
            return float(values[key])
    raise BadInput(f"{file}: says nothing of a shift (flow_shift, shift); set flow.sample_shift, 3 for Sana.")


def assemble(mllm: Any, transformer: Any, settings: Settings) -> MetaQuery:
    """The model of loaded parts, with new queries and a new connector (of torch's random state)."""
    width = mllm.config.get_text_config().hidden_size
    given = transformer.config.caption_channels
    return MetaQuery(mllm, transformer, settings.queries, Connector(width, given, settings.layers, settings.width))


def open_qwen(model: Model, precision: Any, device: Any) -> tuple[Any, Any]:
    """A frozen Qwen3-VL and its processor."""
    mllm, processor = load_model(model, precision=precision, device=device)
    return mllm.requires_grad_(False), processor
