"""Pictures to latents and back: pixels exactly, an autoencoder with its scale, which has to be there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sketches
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qvl_core.errors import BadInput
from qvl_data.drawing.calls import pictures
from qvl_metaquery.coder import Autoencoder, Pixels, measured_scale, open_coder
from qvl_metaquery.pixels import square, stacked

GREY = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1) * 2 - 1


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    return sketches.autoencoder()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixels_come_back_as_they_were(factor: int, tmp_path: Path) -> None:
    Pixels.fitted(GREY, factor).save_pretrained(tmp_path)
    coder = open_coder(tmp_path)
    latents = coder.encode(GREY)
    assert latents.shape == (3, *coder.latent_shape(8)) == (3, factor**2, 8 // factor, 8 // factor)
    assert abs(latents.mean()) < 1e-6
    assert abs(latents.std() - 1) < 1e-2
    assert (coder.decode(latents) - GREY).abs().max() < 1e-6


def test_an_autoencoders_latents_are_scaled_there_and_back(autoencoder: Any, tmp_path: Path) -> None:
    autoencoder.save_pretrained(tmp_path)
    coder = open_coder(tmp_path)
    assert isinstance(coder, Autoencoder)
    assert coder.latent_shape(16) == (8, 8, 8)
    with torch.no_grad():
        plain = autoencoder.encode(GREY).latent
        back = autoencoder.decode(plain).sample
    torch.testing.assert_close(coder.encode(GREY), plain * 0.25)
    torch.testing.assert_close(coder.decode(plain * 0.25), back)
    assert not any(parameter.requires_grad for parameter in coder.parameters())


def test_the_scale_to_write_down_brings_latents_to_a_deviation_of_one(autoencoder: Any) -> None:
    scale = measured_scale(autoencoder, [GREY[:2], GREY[2:]])
    assert abs(Autoencoder(autoencoder, scale).encode(GREY).std() - 1) < 1e-5


@pytest.mark.parametrize("scale", [None, 0])
def test_an_autoencoder_without_its_scale_is_refused(scale: float | None, autoencoder: Any, tmp_path: Path) -> None:
    autoencoder.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text("utf-8")) | {"scaling_factor": scale}
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(BadInput, match=r"config\.json: no scaling_factor there.*0\.41407 for Sana's"):
        open_coder(tmp_path)


def test_what_is_no_autoencoder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config\.json there"):
        open_coder(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="is no JSON"):
        open_coder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL", "scaling_factor": 1}', encoding="utf-8")
    with pytest.raises(BadInput, match="AutoencoderKL"):
        open_coder(tmp_path)


def test_an_autoencoder_that_lacks_weights_is_refused(autoencoder: Any, tmp_path: Path) -> None:
    autoencoder.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["encoder.conv_in.weight"]
    save_file(weights, file)
    with pytest.raises(BadInput, match=r"1 weights are missing, such as encoder\.conv_in\.weight"):
        open_coder(tmp_path)


def test_a_size_between_the_coders_steps_is_refused() -> None:
    with pytest.raises(BadInput, match=r"9 is no multiple of 2"):
        Pixels(2).latent_shape(9)


def test_the_middle_of_a_picture_is_kept_and_numbers_are_its_colours() -> None:
    values = np.zeros((4, 8, 3), np.uint8)
    values[:, 2:6] = (255, 128, 0)
    cut = square(Image.fromarray(values), 4)
    assert cut.shape == (3, 4, 4)
    np.testing.assert_allclose(cut[:, 1, 1], [1, 128 / 127.5 - 1, -1], atol=1e-6)
    assert (cut == cut[:, :1, :1]).all()
    assert square(Image.new("L", (31, 17)), 16).shape == (3, 16, 16)
    assert square(Image.new("RGB", (3, 90)), 16).shape == (3, 16, 16)


def test_every_colour_survives_the_way_to_numbers_and_back() -> None:
    colours = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([colours, colours.T, 255 - colours], -1))
    (back,) = pictures(stacked([square(picture, 16)]).numpy())
    assert back.tobytes() == picture.tobytes()
    dark, bright = pictures(torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2).numpy())
    assert (dark.getextrema(), bright.getextrema()) == (((0, 0),) * 3, ((255, 255),) * 3)
