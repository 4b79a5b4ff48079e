"""diffusion.json beside an adapter: how its base has to attend, which an adapter's own files have no word for."""

import json
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_mdlm.config import masked_config

SETTINGS = "diffusion.json"
KEYS = ("pattern", "block_size", "mask_token_id", "pad_to")


def write_settings(config: Any, folder: str | Path) -> None:
    """Write what a masked diffusion model's configuration says of attention, masks and canvases."""
    write_atomic(Path(folder) / SETTINGS, json.dumps({key: getattr(config, key) for key in KEYS}) + "\n")


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What `write_settings` wrote; None if there is no such file. Raises BadInput for one that is something else."""
    file = folder / SETTINGS
    if not file.is_file():
        return None
    try:
        settings = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        settings = {}
    if settings.keys() != set(KEYS):
        raise BadInput(f"{file}: is not what training writes ({', '.join(KEYS)}); copy it from the run's final/ again.")
    return settings


def with_settings(config: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    """The base's configuration as the adapter was trained on it. Raises BadInput for a base that attends otherwise."""
    masked = masked_config(config, tokenizer, settings["pattern"], settings["block_size"], settings["mask_token_id"])
    masked.pad_to = settings["pad_to"]
    return masked
