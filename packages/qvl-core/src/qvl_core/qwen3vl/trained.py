"""The folders that training leaves behind, as later commands find them: a run's, an adapter's, a model's, its base's.

Adapters of plain peft, Unsloth, ms-swift and LLaMA-Factory are folders of the same kind; what they lack (a processor, a
base in full precision) is taken from the base model.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.foreign import CONFIG_FILE
from qvl_core.qwen3vl.load import find_folder, open_processor
from qvl_core.recipe.blocks import Model

_QUANTISED = re.compile(r"[^/]+/(?P<name>Qwen3-VL-.+?)(-unsloth)?-bnb-4bit", re.IGNORECASE)
"""How the 4-bit copies of released models are called that Unsloth trains on."""


def folder_of(name: str, command: str) -> Path | None:
    """The folder with the weights of a run, an adapter, a model, or a hub id; None for `tiny`. Raises BadInput.

    command  that trains runs, for a message
    """
    if name == "tiny":
        return None
    return final_folder(Path(name), command) or final_folder(find_folder(name, key="MODEL"), command)


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


def final_folder(path: Path, command: str) -> Path | None:
    """The folder with the weights: a run's final/, or the folder itself; None if there is no such folder."""
    if not path.is_dir():
        return None
    if (path / "final").is_dir():
        return path / "final"
    if (path / "manifest.json").is_file():
        raise BadInput(f"{path}: is a training checkpoint; name its run folder or the final/ folder there.")
    if (path / "recipe.yaml").is_file():
        raise BadInput(f"{path}: this run is not finished, it has no final/; run its `{command} train` command again.")
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
