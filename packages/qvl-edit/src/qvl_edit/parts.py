"""Parts of a checkpoint in the layout of diffusers that are read as they are: autoencoder, shift of noise levels."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.whole import load_part
from qvl_edit.coder import PatchCoder
from qvl_edit.latents import Vae
from qvl_edit.model import Call, TwoStreams
from qvl_edit.profile import read_config, read_grid
from qvl_edit.times import Shift


def open_vae(folder: Path, dtype: torch.dtype, batch: int | None = None) -> Vae:
    """The checkpoint's autoencoder. Raises BadInput for one that is not known."""
    kinds = {kind.__name__: kind for kind in (AutoencoderKLQwenImage, PatchCoder)}
    name = read_config(folder / "vae" / "config.json").get("_class_name")
    if name not in kinds:
        raise BadInput(f"{folder / 'vae' / 'config.json'}: {name} is not known; use one of {', '.join(kinds)}.")
    return Vae(load_part(kinds[name], folder / "vae", dtype), batch)


def open_call(folder: Path) -> Call:
    """How the checkpoint's transformer is called."""
    return TwoStreams(read_grid(folder))


def open_shift(folder: Path) -> Shift:
    """How the checkpoint's scheduler moves levels of noise. Raises BadInput for one that is not known."""
    return Shift.of(read_config(folder / "scheduler" / "scheduler_config.json"))
