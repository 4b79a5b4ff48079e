"""What a checkpoint's small files say of it: of a folder, and of Qwen's own by their names, without a file.

So data and recipes are checked before 58 GB are fetched.
"""

from typing import Any, NamedTuple

from qvl_edit.opening import ABOUT, RELEASED, checkpoint, described
from qvl_edit.packing import Grid
from qvl_edit.parts import open_shift
from qvl_edit.profile import Profile, read_config
from qvl_edit.recipe import EditModel
from qvl_edit.times import Shift

WIDTH = 3584  # of an embedding


class Configs(NamedTuple):
    """What decides sizes, levels and shapes.

    channels     of latents
    transformer  arguments of `QwenImageTransformer2DModel`; its defaults are those of the released ones
    """

    profile: Profile
    channels: int
    grid: Grid
    shift: Shift
    transformer: dict[str, Any]


def configs(model: EditModel) -> Configs:
    """Of a recipe's checkpoint. Raises BadInput for one that is neither known nor there."""
    found = described(model)
    if model.name in RELEASED:
        return Configs(*found, Shift(), {"zero_cond_t": found.profile.zero_cond_t})
    with checkpoint(model, ABOUT) as folder:
        transformer = read_config(folder / "transformer" / "config.json")
        own = {name: value for name, value in transformer.items() if name[0] != "_"}
        return Configs(*found, open_shift(folder), own)


def shapes(model: EditModel, made: Configs) -> tuple[Any, Any]:
    """Transformer and autoencoder without storage; None for an autoencoder without weights. Raises BadInput."""
    import torch
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    config: dict[str, Any] | None = {}
    if model.name not in RELEASED:
        with checkpoint(model, ABOUT) as folder:
            found = read_config(folder / "vae" / "config.json")
        own = found.get("_class_name") == AutoencoderKLQwenImage.__name__
        config = {name: value for name, value in found.items() if name[0] != "_"} if own else None
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(**made.transformer)
        return transformer, None if config is None else AutoencoderKLQwenImage(**config)
