"""Exact shapes of the parts of a recipe, without storage: of released Sanas by their name, else of a folder's configs.

model, coder = shapes(recipe)                             # on the meta device
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl_core.errors import BadInput

if TYPE_CHECKING:
    from qvl_metaquery.model import MetaQuery
    from qvl_metaquery.recipe import MetaQueryRecipe

_TRANSFORMER = {"in_channels": 32, "out_channels": 32, "caption_channels": 2304, "mlp_ratio": 2.5, "patch_size": 1}
_SIZES: dict[str, dict[str, Any]] = {
    "1600M": {
        "num_layers": 20,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 2240,
    },
    "600M": {
        "num_layers": 28,
        "num_attention_heads": 36,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 16,
        "cross_attention_head_dim": 72,
        "cross_attention_dim": 1152,
    },
}
_BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_SCALES: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
CODER: dict[str, Any] = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": _BLOCKS,
    "decoder_block_types": _BLOCKS,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": _SCALES,
    "decoder_qkv_multiscales": _SCALES,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
"""Of the autoencoder of all released Sanas, DC-AE f32c32."""


def shapes(recipe: "MetaQueryRecipe") -> "tuple[MetaQuery, Any]":
    """The whole model, frozen or not, and Sana's autoencoder (None: exact pixels, which have no weights).

    Raises BadInput for a Sana that is neither a folder nor known by its name.
    """
    import torch

    from qvl_core.qwen3vl import attention
    from qvl_core.qwen3vl.load import open_config
    from qvl_core.qwen3vl.presets import meta_model
    from qvl_metaquery.opening import assemble

    mllm = meta_model(open_config(recipe.model.name, recipe.model.revision))
    attention.use(mllm)
    with torch.device("meta"):
        transformer, coder = _sana(recipe.sana.name)
        return assemble(mllm.requires_grad_(False), transformer, recipe.settings), coder


def latent_shape(model: "MetaQuery", coder: Any, size: int) -> tuple[int, int, int]:
    """(C, H, W) of the latents of a picture with sides of `size` pixels."""
    channels = model.transformer.config.in_channels
    side = size // (round(channels**0.5) if coder is None else coder.spatial_compression_ratio)
    return channels, side, side


def _sana(name: str) -> tuple[Any, Any]:
    """Transformer and autoencoder on the present device."""
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    folder = Path(name).expanduser()
    if name == "tiny":
        from qvl_metaquery.tiny import tiny_transformer

        return tiny_transformer(channels=4, side=4), None
    if folder.is_dir():
        own = {part: _config(folder / part) for part in ("transformer", "vae")}
        pixels = own["vae"].get("_class_name") == "Pixels"
        coder = None if pixels else AutoencoderDC.from_config(own["vae"])
        return SanaTransformer2DModel.from_config(own["transformer"]), coder
    size = next((size for size in _SIZES if f"sana_{size}".lower() in name.lower()), None)
    if size is None:
        raise BadInput(
            f"sana.name: shapes of {name!r} are not known; name a folder, or one of Sana_{', Sana_'.join(_SIZES)}."
        )
    side = 32 if "1024px" in name.lower() else 16
    return SanaTransformer2DModel(**_TRANSFORMER, **_SIZES[size], sample_size=side), AutoencoderDC(**CODER)


def _config(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BadInput(
            f"{folder}: has no config.json that can be read; name a Sana in the layout of diffusers."
        ) from None
    return values
