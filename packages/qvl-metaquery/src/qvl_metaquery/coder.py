"""Between pictures and the latents that Sana draws: its own autoencoder (DC-AE), or exactly invertible pixels.

    coder = open_coder(folder / "vae")
    latents = coder.encode(pixels)                        # (B, 3, S, S) in [-1, 1] to (B, C, S / factor, S / factor)
    pixels = coder.decode(latents)

Latents have a standard deviation of about 1: noise of that size is mixed with them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import fingerprint
from qvl_core.qwen3vl.whole import load_part

CONFIG = "config.json"


class Coder(nn.Module):
    """What every coder has.

    channels  of the latents
    factor    pixels along one side of a latent place
    scale     what the result of `raw` is multiplied by
    """

    channels: int
    factor: int
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        """Type of what `raw` gives."""
        return torch.float32

    def encode(self, pixels: Tensor) -> Tensor:
        return self.raw(pixels).float() * self.scale

    def raw(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), to the bit the same for a picture alone and among others: what `encode` makes, unscaled."""
        raise NotImplementedError

    def origin(self) -> str:
        """What two coders share only if they give the same."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C, H, W) of a picture's latents. Raises BadInput for a size that is no multiple of `factor`."""
        if size % self.factor:
            raise BadInput(f"flow.size: {size} is no multiple of {self.factor}, the coder's step; change it.")
        return self.channels, size // self.factor, size // self.factor


class Autoencoder(Coder):
    """Sana's autoencoder (`diffusers.AutoencoderDC`), frozen; its latents are multiplied by `scale`."""

    def __init__(self, model: Any, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model.eval().requires_grad_(False), scale
        self.channels = model.config.latent_channels
        self.factor = model.spatial_compression_ratio

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @torch.no_grad()
    def raw(self, pixels: Tensor) -> Tensor:
        """One picture after the other, in the autoencoder's own type: how many are computed together, and how a result
        lies in memory, changes last bits. (A picture of 512 pixels is 1.3 TFLOP by itself.)"""
        with torch.autocast(self.model.device.type, enabled=False):
            return torch.cat([self.model.encode(one.to(self.dtype)).latent.contiguous() for one in pixels.split(1)])

    def origin(self) -> str:
        return fingerprint(self.model)[:16]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.model.decode((latents / self.scale).to(self.model.dtype)).sample
        return pixels.float()

    def save_pretrained(self, folder: Path) -> None:
        """With its scale, in the layout of diffusers."""
        self.model.register_to_config(scaling_factor=self.scale)
        self.model.save_pretrained(folder)


class Pixels(Coder):
    """Small grey pictures rearranged: each `factor` x `factor` pixels become the channels of one place.

    Exactly invertible for grey pictures. `mean` and `spread` of the pixels bring latents to a deviation of 1.
    """

    def __init__(self, factor: int = 2, mean: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        self.factor, self.channels, self.mean, self.spread = factor, factor**2, mean, spread
        self.scale = 1.0

    def raw(self, pixels: Tensor) -> Tensor:
        grey = pixels.float().mean(1, keepdim=True)
        return pixel_unshuffle((grey - self.mean) / self.spread, self.factor)

    def decode(self, latents: Tensor) -> Tensor:
        grey = pixel_shuffle(latents.float(), self.factor) * self.spread + self.mean
        return grey.expand(-1, 3, -1, -1)

    def origin(self) -> str:
        return f"pixels {self.factor} {self.mean} {self.spread}"

    @classmethod
    def fitted(cls, pixels: Tensor, factor: int = 2) -> "Pixels":
        """With the mean and deviation of pictures (B, 3, S, S)."""
        return cls(factor, float(pixels.mean()), float(pixels.std()))

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        values = {"_class_name": "Pixels", "factor": self.factor, "mean": self.mean, "spread": self.spread}
        (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def open_coder(folder: Path, dtype: torch.dtype = torch.float32) -> Coder:
    """The coder in a folder, in evaluation mode. Raises BadInput for one that is not there or lacks its scale."""
    config = _config(folder)
    kind: Literal["Pixels", "AutoencoderDC"] | Any = config.get("_class_name")
    if kind == "Pixels":
        return Pixels(config["factor"], config["mean"], config["spread"]).eval()
    if kind != "AutoencoderDC":
        raise BadInput(f"{folder / CONFIG}: {kind!r} is no autoencoder that is known; use AutoencoderDC (Sana's).")
    scale = config.get("scaling_factor")
    if not scale:
        raise BadInput(
            f"{folder / CONFIG}: no scaling_factor there, without which latents are far larger than the noise; write "
            "1 / (standard deviation of the latents), 0.41407 for Sana's."
        )
    from diffusers import AutoencoderDC

    return Autoencoder(load_part(AutoencoderDC, folder, dtype), float(scale)).eval()


def measured_scale(model: Any, batches: Sequence[Tensor]) -> float:
    """1 / (standard deviation) of an autoencoder's latents of pictures (B, 3, S, S): what its config has to say."""
    with torch.no_grad():
        latents = torch.cat([model.encode(pixels).latent.flatten() for pixels in batches])
    return float(1 / latents.std())


def _config(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder}: no {CONFIG} there, so it is no autoencoder; name a folder that has one.") from None
    except ValueError as error:
        raise BadInput(f"{folder / CONFIG}: is no JSON ({error}); copy it again.") from None
    return values
