"""The tiny checkpoint is one of diffusers, and the patch coder gives pixels back."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL import Image

from qvl_edit import cli
from qvl_edit.coder import PatchCoder
from qvl_edit.tiny import NAMES, Coder


@pytest.mark.parametrize(
    ("name", "coder", "size"),
    [("t2i", "vae", 32), ("edit-plus", "vae", 32), ("edit-2511", "vae", 32), ("edit-plus", "patches", 16)],
)
def test_diffusers_loads_and_runs_it(checkpoint: Callable[..., Path], name: str, coder: Any, size: int) -> None:
    pipeline = DiffusionPipeline.from_pretrained(checkpoint(name, coder))
    pipeline.set_progress_bar_config(disable=True)
    pictures = {} if name == "t2i" else {"image": [Image.new("RGB", (64, 64), "blue")] * 2}
    how = {"height": size, "width": size, "num_inference_steps": 2, "true_cfg_scale": 2.0, "negative_prompt": " "}
    with patch.object(plus, "VAE_IMAGE_SIZE", 32 * 32):
        drawn = pipeline(prompt="make it red", **how, **pictures).images[0]
    assert drawn.size == (size, size)


def test_equal_seeds_give_equal_checkpoints(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        assert cli.app.run(["tiny", str(tmp_path / name), "--seed", str(seed)]) == 0
    part = Path("transformer", "diffusion_pytorch_model.safetensors")
    first, same, other = (
        (folder / part).read_bytes() for folder in (checkpoint(), tmp_path / "same", tmp_path / "other")
    )
    assert first == same != other


def test_the_command_offers_what_there_is() -> None:
    parameters = inspect.signature(cli.tiny).parameters
    kind, coder = (get_args(get_args(parameters[name].annotation)[0]) for name in ("kind", "coder"))
    assert kind == NAMES
    assert coder == get_args(Coder)


def test_the_patch_coder_loses_nothing() -> None:
    coder = PatchCoder()
    pixels = torch.rand(2, 3, 1, 16, 8)
    latents = coder.encode(pixels).latent_dist
    assert latents.mode().shape == (2, coder.config.z_dim, 1, 8, 4)
    assert torch.equal(latents.mode(), latents.sample())
    assert torch.equal(coder.decode(latents.mode(), return_dict=False)[0], pixels)
