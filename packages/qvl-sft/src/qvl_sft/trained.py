"""Open what training left behind, or any Qwen3-VL: a run folder, an adapter folder, a model folder or a hub id."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.lora import CONFIG_FILE, load_adapter
from qvl_core.recipe.blocks import Model
from qvl_core.training.engine import DTYPES, resolve_precision


def load_trained(name: str, base: str | None = None) -> tuple[Any, Any]:
    """Model (in evaluation mode, on the best device, in its 16-bit type there) and processor.

    Raises BadInput for a name that is none of these.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision("auto", device)
    folder = final_folder(Path(name))
    if folder is None or not is_adapter(folder):
        return load_model(Model(name=str(folder or name)), precision=precision, device=device)
    model, processor = load_model(base_of(folder, base), precision=precision, device=device)
    load_adapter(model, folder)
    return model.to(DTYPES[precision]).eval(), own_processor(folder) or processor


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter folder says of itself."""
    return dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))


def own_processor(folder: Path) -> Any:
    """The processor saved with an adapter, which has the picture budget of its training; None if there is none."""
    return AutoProcessor.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None


def final_folder(path: Path) -> Path | None:
    """The folder with the weights: a run's final/, or the folder itself; None if there is no such folder."""
    if not path.is_dir():
        return None
    if (path / "final").is_dir():
        return path / "final"
    if (path / "manifest.json").is_file():
        raise BadInput(f"{path}: is a training checkpoint; name its run folder or the final/ folder there.")
    if (path / "recipe.yaml").is_file():
        raise BadInput(f"{path}: this run is not finished, it has no final/; run its `qvl-sft train` command again.")
    return path


def base_of(adapter: Path, given: str | None = None) -> Model:
    """The base to put an adapter on: the one given, else the one that the adapter names.

    A base inside the run folder is found there when the folder was moved. Raises BadInput if none is named.
    """
    if given is not None:
        return Model(name=given)
    config = adapter_config(adapter)
    name = config.get("base_model_name_or_path")
    if not name:
        raise BadInput(f"{adapter / CONFIG_FILE}: names no base model; give it with --base.")
    if Path(name).is_dir() or not Path(name).is_absolute():
        return Model(name=name, revision=config.get("revision"))
    for inside in (Path(name).name, Path(*Path(name).parts[-2:])):  # of a run folder that was moved: base, or stage one
        moved = adapter.parent / inside
        if moved.is_dir() and moved != adapter:
            return Model(name=str(moved))
    raise BadInput(f"{adapter / CONFIG_FILE}: its base {name} is not there; give it with --base.")
