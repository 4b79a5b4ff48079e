"""Open what training left behind, or any Qwen3-VL: a run folder, an adapter folder, a model folder or a hub id.

Adapters of plain peft, Unsloth, ms-swift and LLaMA-Factory are folders of the same kind; what they lack (a processor, a
base in full precision) is taken from the base model.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import find_folder, load_model, open_processor
from qvl_core.qwen3vl.lora import CONFIG_FILE, load_adapter
from qvl_core.qwen3vl.quantize import is_quantized
from qvl_core.recipe.blocks import Model, Quantization
from qvl_core.training.engine import DTYPES, resolve_precision

_QUANTISED = re.compile(r"[^/]+/(?P<name>Qwen3-VL-.+?)(-unsloth)?-bnb-4bit", re.IGNORECASE)
"""How the 4-bit copies of released models are called that Unsloth trains on."""


def load_trained(
    name: str, base: str | None = None, *, quantization: str | None = None, spread: bool = False
) -> tuple[Any, Any]:
    """Model (in evaluation mode, on the best device, in its 16-bit type there) and processor.

    base          what to put an adapter on, in place of the base that it names
    quantization  nf4 or int8: hold the language model in fewer bits
    spread        lay the layers on all GPUs, then on the host's memory (accelerate); for models larger than one GPU

    A folder in 4 bits, as `export --quantize nf4` and Unsloth write it, is opened as it is. Raises BadInput for a name
    that is none of these.
    """
    if quantization and spread:
        raise BadInput("--quant and --device-map exclude each other; a model in fewer bits stays on one device.")
    best = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, precision = torch.device("cpu") if spread else best, resolve_precision("auto", best)
    quantized = Quantization.model_validate({"kind": quantization}) if quantization else None
    folder = folder_of(name)
    adapter = folder if folder is not None and is_adapter(folder) else None
    block = base_of(adapter, base) if adapter else Model(name=str(folder or name))
    model, processor = load_model(
        block.model_copy(update={"quantization": quantized}), precision=precision, device=device, low_bit=True
    )
    if spread and is_quantized(model):
        raise BadInput(f"{block.name}: is in 4 bits, which stay on one device; leave out --device-map.")
    if adapter:
        load_adapter(model, adapter)
        for key, parameter in model.named_parameters():
            if ".lora_" in key:  # fp32 until now
                parameter.data = parameter.data.to(DTYPES[precision])
        processor = own_processor(adapter) or processor
    return (_spread(model) if spread else model).eval(), processor


def _spread(model: Any) -> Any:
    """Layers on the GPUs as far as they fit, evenly, and the rest in the host's memory, fetched when they run."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = model._no_split_modules
    memory = get_balanced_memory(model, no_split_module_classes=whole)
    return dispatch_model(model, infer_auto_device_map(model, memory, no_split_module_classes=whole))


def folder_of(name: str) -> Path | None:
    """The folder with the weights of a run, an adapter, a model, or a hub id; None for `tiny`. Raises BadInput."""
    if name == "tiny":
        return None
    return final_folder(Path(name)) or final_folder(find_folder(name, key="MODEL"))


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter folder says of itself. Raises BadInput."""
    try:
        return dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise BadInput(f"{folder / CONFIG_FILE}: is not readable as JSON; copy it again.") from None


def own_processor(folder: Path) -> Any:
    """The processor saved with an adapter, which has the picture budget of its training; None if it is not whole."""
    pictures = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    return open_processor(Model(name=str(folder))) if pictures and (folder / "tokenizer.json").is_file() else None


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
    whole = is_adapter(path) or (path / "config.json").is_file()
    if not whole and (saved := sorted(path.glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime)):
        raise BadInput(f"{path}: holds the checkpoints of a trainer; name one, such as {saved[-1]}.")
    return path


def base_of(adapter: Path, given: str | None = None) -> Model:
    """The base to put an adapter on, in full precision: the one given, else the one that the adapter names.

    A base inside the run folder is found there when the folder was moved. Raises BadInput if none is named.
    """
    if given is not None:
        return Model(name=given)
    config = adapter_config(adapter)
    name = config.get("base_model_name_or_path")
    if not name:
        raise BadInput(f"{adapter / CONFIG_FILE}: names no base model; give it with --base.")
    if Path(name).is_dir():
        return Model(name=name)
    if match := _QUANTISED.fullmatch(name):
        original = f"Qwen/{match['name']}"
        logging.getLogger(__name__).warning(
            "%s: its base %s is a 4-bit copy of %s, which is taken; name another with --base.", adapter, name, original
        )
        return Model(name=original)
    if not Path(name).is_absolute():
        return Model(name=name, revision=config.get("revision"))
    for inside in (Path(name).name, Path(*Path(name).parts[-2:])):  # of a run folder that was moved: base, or stage one
        moved = adapter.parent / inside
        if moved.is_dir() and moved != adapter:
            return Model(name=str(moved))
    raise BadInput(f"{adapter / CONFIG_FILE}: its base {name} is not there; give it with --base.")
