"""A tiny encoder, and a tiny Qwen3-VL with it: what the real ones are, at a size for tests and demos."""

import json
from pathlib import Path
from typing import Any

from qvl_core.files import new_folder

MEAN, STD = [0.5] * 3, [0.5] * 3
SIDE = 64  # of the pictures, in pixels


def tiny(folder: Path, seed: int = 0, thinking: bool = False) -> str:
    """Write a tiny Qwen3-VL whose tower is a tiny DINOv2, with its processor, to the new folder `folder`."""
    import tempfile

    from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor
    from qvl_vision.checkpoint import save
    from qvl_vision.swapping import swap

    processor = tiny_processor(thinking=thinking)
    with tempfile.TemporaryDirectory() as aside:
        encoder = tiny_encoder(Path(aside) / "tiny-dinov2", seed)
        swapped, swapped_processor = swap((tiny_model(processor.tokenizer, seed), processor), str(encoder), seed=seed)
        save(swapped, swapped_processor, folder)
    return f"{folder}: a tiny Qwen3-VL with a tiny DINOv2; look at it with `qvl-vision inspect {folder}`."


def tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random DINOv2 to the new folder `folder`."""
    return write_encoder(tiny_dinov2(seed), folder)


def tiny_dinov2(seed: int = 0, patch: int = 8) -> Any:
    """A random DINOv2 of 3 layers x 48, for pictures of 64 pixels, in evaluation mode."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=3, image_size=SIDE, patch_size=patch
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Dinov2Model(config).eval()


def write_encoder(model: Any, folder: Path) -> Path:
    """Write such an encoder as real ones are written: weights, configuration and picture settings."""
    from qvl_core.qwen3vl.load import quiet

    with new_folder(folder) as aside, quiet(bars=False):
        model.save_pretrained(aside)
        settings = {"image_mean": MEAN, "image_std": STD, "size": {"height": SIDE, "width": SIDE}}
        (aside / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
