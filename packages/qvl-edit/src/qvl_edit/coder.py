"""Pixels rearranged, with the surface of Qwen-Image's autoencoder: what is learned through it is not bounded by it.

    coder = PatchCoder()                                     # a part of a pipeline of diffusers, as its vae
    latents = coder.encode(pixels).latent_dist.mode()        # (B, 3, 1, H, W) to (B, 12, 1, H / 2, W / 2)
    pixels = coder.decode(latents, return_dict=False)[0]     # the same pixels

A tiny autoencoder that is trained on the spot blurs more than three simple edits may be wrong by (its limit was a mean
error of 0.16 to 0.43 where this reaches 0.02), so demos and tests of learning draw through this.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class Exact:
    """A distribution of one value."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def mode(self) -> Tensor:
        return self.value

    def sample(self, generator: Any = None) -> Tensor:
        return self.value


class PatchCoder(ModelMixin, ConfigMixin):
    """Each 2 x 2 pixels become the 12 channels of one place (16, with a fourth channel); exactly invertible.

    `latents_mean` and `latents_std` bring the latents of its pictures to a mean of 0 and a deviation of 1.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        z_dim: int = 12,
        latents_mean: Sequence[float] = (0.0,) * 12,
        latents_std: Sequence[float] = (1.0,) * 12,
        temperal_downsample: Sequence[bool] = (False,),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.temperal_downsample = (
            temperal_downsample  # diffusers' spelling: its length says how often sides are halved
        )
        self.nothing = nn.Parameter(torch.zeros(1))  # diffusers takes device and type from the weights

    def encode(self, pixels: Tensor, return_dict: bool = True) -> Any:
        distribution = Exact(pixel_unshuffle(pixels.squeeze(2), 2).unsqueeze(2))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, latents: Tensor, return_dict: bool = True) -> Any:
        pixels = pixel_shuffle(latents.squeeze(2), 2).unsqueeze(2)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)
