"""One's own encoders, as a user would write them: any number of tokens."""

import torch
from torch import Tensor, nn

from qvl_vision import register_encoder, register_merger

HALF = (0.5, 0.5, 0.5)


@register_encoder("stripes", size=24, mean=HALF, std=HALF)
class Stripes(nn.Module):
    """Any number of tokens from one picture of 24 x 24: rows of a linear map, with a buffer that no file holds."""

    def __init__(self, tokens: int = 13, width: int = 20) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * 24 * 24, tokens * width)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("ramp", torch.linspace(0, 1, width), persistent=False)
        self.width = width

    def forward(self, pictures: Tensor) -> Tensor:  # (B, 3, 24, 24) -> (B, N, D)
        tokens = self.proj(pictures.flatten(1)).unflatten(1, (-1, self.width))
        return self.drop(tokens + self.ramp)


@register_encoder("computing", size=24, mean=HALF, std=HALF)
class Computing(Stripes):
    """Reads values of tensors while it is made."""

    def __init__(self, tokens: int = 4) -> None:
        super().__init__(tokens)
        self.scale = torch.tensor([0.25, 0.75]).mean().item()

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(pictures) * self.scale


@register_encoder("normed", size=24, mean=HALF, std=HALF)
class Normed(nn.Module):
    """A convolution with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 12, 8, stride=8), nn.BatchNorm2d(12)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.bn(self.conv(pictures)).flatten(2).transpose(1, 2)


@register_merger("waving")
class Waving(nn.Module):
    """A merger with a buffer that no file holds."""

    def __init__(self, vision_width: int, text_width: int, merge: int) -> None:
        super().__init__()
        self.proj = nn.Linear(vision_width, text_width)
        self.register_buffer("wave", torch.linspace(0, 1, text_width).sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(tokens) + self.wave


@register_encoder("tiles", size=24, patch=8, mean=HALF, std=HALF)
class Tiles(nn.Module):
    """Pictures of any size, one token for each 8 x 8 pixels."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 8, stride=8)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.conv(pictures).flatten(2).transpose(1, 2)


@register_encoder("flat", size=24, mean=HALF, std=HALF)
class Flat(nn.Module):
    """Gives one vector for a picture: the wrong rank."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * 24 * 24, 20)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.proj(pictures.flatten(1))


@register_encoder("liar", size=24, patch=4, mean=HALF, std=HALF)
class Liar(Tiles):
    """Says patches of 4 and gives patches of 8."""


@register_encoder("square", size=24, patch=8, mean=HALF, std=HALF)
class Square(Tiles):
    """Says that it takes any size and always gives nine tokens."""

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(nn.functional.interpolate(pictures, (24, 24)))


@register_encoder("nine", size=48, mean=HALF, std=HALF)
def nine() -> nn.Module:
    """A function that makes a module: nine tokens of a picture of 48 x 48."""
    return nn.Sequential(nn.Conv2d(3, 12, 16, stride=16), nn.Flatten(2), _Turn())


class _Turn(nn.Module):
    def forward(self, features: Tensor) -> Tensor:  # (B, D, N) -> (B, N, D)
        return features.transpose(1, 2)
