"""What a checkpoint's small files say of it: of a folder, and of Qwen's own by their names, without a file.

So data and recipes are checked before 58 GB are fetched.
"""

from typing import Any, NamedTuple

from qvl_edit.opening import ABOUT, RELEASED, checkpoint, described
from qvl_edit.packing import Grid
from qvl_edit.parts import open_shift, transformer_class
from qvl_edit.profile import Profile, read_config
from qvl_edit.recipe import EditModel
from qvl_edit.times import Shift


class Configs(NamedTuple):
    """What decides sizes, levels and shapes.

    channels     of latents
    transformer  arguments of its class, whose defaults are those of the released ones
    """

    profile: Profile
    channels: int
    grid: Grid
    seen: tuple[int, int] | None
    shift: Shift
    transformer: dict[str, Any]


def configs(model: EditModel) -> Configs:
    """Of a recipe's checkpoint. Raises BadInput for one that is neither known nor there."""
    found = described(model)
    if model.name in RELEASED:
        own = {} if found.profile.one_stream else {"zero_cond_t": found.profile.zero_cond_t}
        return Configs(*found, Shift.of({"use_dynamic_shifting": True}) if found.profile.one_stream else Shift(), own)
    with checkpoint(model, ABOUT) as folder:
        transformer = read_config(folder / "transformer" / "config.json")
        own = {name: value for name, value in transformer.items() if name[0] != "_"}
        return Configs(*found, open_shift(folder), own)


def transformer_shapes(made: Configs) -> Any:
    """The transformer without storage."""
    import torch

    with torch.device("meta"):
        return transformer_class(made.profile)(**made.transformer)


def shapes(model: EditModel, made: Configs) -> tuple[Any, Any]:
    """Transformer and autoencoder without storage; None for an autoencoder without weights. Raises BadInput."""
    import torch
    from diffusers import AutoencoderKLQwenImage, AutoencoderKLQwenImage21

    kind = AutoencoderKLQwenImage21 if made.profile.one_stream else AutoencoderKLQwenImage
    config: dict[str, Any] | None = {}
    if model.name not in RELEASED:
        with checkpoint(model, ABOUT) as folder:
            found = read_config(folder / "vae" / "config.json")
        own = found.get("_class_name") == kind.__name__
        config = {name: value for name, value in found.items() if name[0] != "_"} if own else None
    with torch.device("meta"):
        return transformer_shapes(made), None if config is None else kind(**config)
