"""Between pictures and latents: a checkpoint's autoencoder, frozen.

    vae = Vae(pipeline.vae)
    latents = vae.encode(pixels)        # (B, 3, H, W) in [-1, 1] to (B, C, h, w)
    pixels = vae.decode(latents)

Pictures are opaque: an autoencoder that knows transparency (Qwen-Image-2.1's) is shown none, and what it draws is laid
on white, as transparent files are when they are read.

Latents have a mean of about 0 and a deviation of about 1, by the checkpoint's `latents_mean` and `latents_std`. Targets
and sources alike are the middle of what the encoder gives, as the pipelines encode sources.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class Vae(nn.Module):
    """`AutoencoderKLQwenImage`, that of 2.1, or what has their surface.

    batch  pictures that are encoded or decoded at once; None: all
    """

    mean: Tensor  # (1, C, 1, 1), as is `std`
    std: Tensor

    def __init__(self, model: Any, batch: int | None = None) -> None:
        super().__init__()
        self.model, self.batch = model.eval().requires_grad_(False), batch
        self.channels: int = model.config.z_dim
        self.transparent = getattr(model.config, "in_channels", 3) == 4
        self.register_buffer("mean", self._by_channel(model.config.latents_mean), persistent=False)
        self.register_buffer("std", self._by_channel(model.config.latents_std), persistent=False)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) in fp32."""
        return self.normed(self.raw(pixels))

    @torch.no_grad()
    def raw(self, pixels: Tensor) -> Tensor:
        """The same before mean and deviation, in the autoencoder's own type: what is stored."""
        if self.transparent:
            pixels = pad(pixels, (0, 0, 0, 0, 0, 1), value=1.0)  # (B, 4, H, W)
        with torch.autocast(pixels.device.type, enabled=False):
            parts = pixels.to(self.model.dtype).unsqueeze(2).split(self.batch or len(pixels))
            return torch.cat([self.model.encode(part).latent_dist.mode() for part in parts]).squeeze(2)

    def normed(self, raw: Tensor) -> Tensor:
        """(B, C, h, w) in fp32, of what `raw` gave."""
        return (raw.float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) in fp32."""
        whole = (latents.float() * self.std + self.mean).to(self.model.dtype)
        with torch.autocast(latents.device.type, enabled=False):
            parts = whole.unsqueeze(2).split(self.batch or len(whole))
            pixels = torch.cat([self.model.decode(part, return_dict=False)[0] for part in parts])
        pixels = pixels.squeeze(2).float()
        return on_white(pixels) if self.transparent else pixels

    def _by_channel(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def on_white(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) of (B, 4, H, W) with opacity in the last channel, all in [-1, 1]."""
    opacity = (pixels[:, 3:].clamp(-1, 1) + 1) / 2  # (B, 1, H, W)
    return pixels[:, :3] * opacity + (1 - opacity)
