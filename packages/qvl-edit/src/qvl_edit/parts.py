"""Parts of a checkpoint in the layout of diffusers that are read as they are: autoencoder, shift of noise levels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    QwenImage21Transformer2DModel,
    QwenImageTransformer2DModel,
)

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.whole import load_part
from qvl_edit.coder import PatchCoder
from qvl_edit.embed import open_tokenizer
from qvl_edit.latents import Vae
from qvl_edit.model import Call, OneStream, TwoStreams
from qvl_edit.profile import Profile, read_config, read_grid
from qvl_edit.times import Shift


def open_vae(folder: Path, dtype: torch.dtype, batch: int | None = None) -> Vae:
    """The checkpoint's autoencoder. Raises BadInput for one that is not known."""
    kinds = {kind.__name__: kind for kind in (AutoencoderKLQwenImage, AutoencoderKLQwenImage21, PatchCoder)}
    return Vae(load_part(_kind(folder / "vae", kinds), folder / "vae", dtype), batch)


def open_call(folder: Path, profile: Profile) -> Call:
    """How the checkpoint's transformer is called. Raises BadInput for a tokenizer that cannot be read."""
    grid = read_grid(folder)
    if not profile.one_stream:
        return TwoStreams(grid)
    return OneStream(grid, profile.shown.gaps(profile.pictures, open_tokenizer(folder, profile)))


TRANSFORMERS = {kind.__name__: kind for kind in (QwenImageTransformer2DModel, QwenImage21Transformer2DModel)}


def transformer_class(profile: Profile) -> Any:
    """The class of its transformer."""
    return QwenImage21Transformer2DModel if profile.one_stream else QwenImageTransformer2DModel


def load_transformer(folder: Path, dtype: torch.dtype) -> Any:
    """A transformer, in the form in which it is stored. Raises BadInput for one that is not known."""
    return load_part(_kind(folder, TRANSFORMERS), folder, dtype)


def transformer_without_weights(folder: Path) -> Any:
    """The same on the meta device, of its config.json alone. Raises BadInput for one that is not known."""
    with torch.device("meta"):
        return _kind(folder, TRANSFORMERS).from_config(read_config(folder / "config.json"))


def _kind(folder: Path, kinds: Mapping[str, Any]) -> Any:
    name = str(read_config(folder / "config.json").get("_class_name"))
    if name not in kinds:
        raise BadInput(f"{folder / 'config.json'}: {name} is not known; use one of {', '.join(kinds)}.")
    return kinds[name]


def open_shift(folder: Path) -> Shift:
    """How the checkpoint's scheduler moves levels of noise. Raises BadInput for one that is not known."""
    own = read_config(folder / "model_index.json").get("sample_sigmas")
    return Shift.of(read_config(folder / "scheduler" / "scheduler_config.json"), own)
