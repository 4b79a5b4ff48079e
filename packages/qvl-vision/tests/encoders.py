"""A tiny random checkpoint of every encoder in the catalogue, written as its real ones are: weights, configuration and
picture settings in a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
CONV = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}

# name in the registry -> model_type, arguments of its configuration
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("dinov2", {**VIT, "mlp_ratio": 2, "image_size": 42, "patch_size": 14}),
    "dinov2_with_registers": (
        "dinov2_with_registers",
        {**VIT, "mlp_ratio": 2, "image_size": 42, "patch_size": 14, "num_register_tokens": 4},
    ),
    "dinov3": ("dinov3_vit", {**VIT, "image_size": 48, "patch_size": 16, "num_register_tokens": 4}),
    "dinov3_convnext": ("dinov3_convnext", {**CONV, "image_size": 96}),
    "clip": ("clip_vision_model", {**VIT, "image_size": 42, "patch_size": 14}),
    "siglip": ("siglip_vision_model", {**VIT, "image_size": 42, "patch_size": 14}),
    "siglip2": ("siglip2_vision_model", {**VIT, "num_patches": 9, "patch_size": 16}),
    "vit": ("vit", {**VIT, "image_size": 48, "patch_size": 16}),
    "convnext": ("convnext", {**CONV, "image_size": 96}),
    "timm_vit": (
        "timm_wrapper",
        {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 48},
            "num_classes": 0,
        },
    ),
    "timm_convnext": (
        "timm_wrapper",
        {"architecture": "convnext_atto", "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}},
    ),
    "timm_swin": (  # features (B, h, w, D)
        "timm_wrapper",
        {
            "architecture": "swin_tiny_patch4_window7_224",
            "model_args": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "img_size": 48, "window_size": 3},
            "num_classes": 0,
        },
    ),
    # not in the catalogue, taken by their files alone
    "swin": (
        "swin",
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 3, "image_size": 48, "patch_size": 4},
    ),
    "ijepa": ("ijepa", {**VIT, "image_size": 42, "patch_size": 14}),
    "beit": ("beit", {**VIT, "image_size": 48, "patch_size": 16, "use_absolute_position_embeddings": True}),
    "convnextv2": ("convnextv2", {**CONV, "image_size": 96}),
}


def config_of(name: str) -> Any:
    kind, arguments = CONFIGS[name]
    return CONFIG_MAPPING[kind](**arguments)


def write_encoder(name: str, folder: Path, seed: int = 0, change: Callable[[Any], None] | None = None) -> Path:
    """A checkpoint folder of a tiny random encoder."""
    config = config_of(name)
    if change is not None:
        change(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).eval()
        for parameter in model.parameters():  # what is zero or one at first would hide mistakes
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    if config.model_type == "timm_wrapper":
        file = folder / "config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        size = 96 if "convnext" in config.architecture else 48
        values["pretrained_cfg"] = {"input_size": [3, size, size], "mean": MEAN, "std": STD}
        file.write_text(json.dumps(values), encoding="utf-8")
    else:
        settings = {"image_mean": MEAN, "image_std": STD, "do_normalize": True}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
