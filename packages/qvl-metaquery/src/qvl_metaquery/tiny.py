"""Tiny parts that load like the released ones: a random Qwen3-VL, and a random Sana with a coder of exact pixels.

FOLDER/qwen      Qwen3-VL with its processor
FOLDER/sana      transformer/, vae/ and scheduler/, as diffusers has them
"""

import json
from pathlib import Path
from typing import Any

from qvl_core.files import new_folder

SPREAD = 0.1  # of the first weights: with the usual 0.02 all prompts say nearly the same


def tiny(folder: Path, seed: int = 0, thinking: bool = False) -> str:
    """Write both parts to the new folder `folder`."""
    with new_folder(folder) as aside:
        tiny_qwen(aside / "qwen", seed=seed, thinking=thinking)
        tiny_sana(aside / "sana", seed=seed)
    return (
        f"{folder}: a tiny Qwen3-VL and a tiny Sana; train them with `qvl-metaquery train tiny "
        f"model.name={folder / 'qwen'} sana.name={folder / 'sana'}`."
    )


def tiny_qwen(folder: Path, texts: Any = (), seed: int = 0, thinking: bool = False) -> Path:
    """A tiny Qwen3-VL whose states differ from prompt to prompt."""
    import torch

    from qvl_core.qwen3vl.tiny import tiny_config, tiny_model, tiny_processor

    processor = tiny_processor(texts, thinking=thinking) if texts else tiny_processor(thinking=thinking)
    usual = tiny_config(processor.tokenizer).text_config.initializer_range
    model = tiny_model(processor.tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SPREAD / usual)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_sana(folder: Path, seed: int = 0, coder: Any = None, size: int = 8) -> Path:
    """A tiny Sana for pictures of `size` pixels; `coder` defaults to pixels of a digit's mean and deviation."""
    import torch

    from qvl_metaquery.coder import Pixels

    coder = coder or Pixels(2, mean=-0.39, spread=0.75)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tiny_transformer(coder.channels, size // coder.factor)
    model.save_pretrained(folder / "transformer")
    coder.save_pretrained(folder / "vae")
    write_scheduler(folder / "scheduler", shift=1.0)
    return folder


def tiny_transformer(channels: int, side: int) -> Any:
    """Three layers of width 96; 0.4M parameters."""
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=24,
        num_cross_attention_heads=4,
        cross_attention_head_dim=24,
        cross_attention_dim=96,
        caption_channels=64,
        sample_size=side,
        patch_size=1,
        interpolation_scale=None,
    )


def write_scheduler(folder: Path, shift: float) -> None:
    """The file that says how noise levels are shifted in sampling."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift}
    (folder / "scheduler_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
