"""The patch embedding as a matrix product.

Qwen3-VL embeds patches with a Conv3d whose kernel is as large as its input: the product of the flattened patches and
the flattened kernel. Some versions of cuDNN have no fast kernel for it (pytorch#174051), and on a CPU the product takes
a quarter of the time. The module keeps its parameters, so that what is saved and trained stays the same.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear


class PatchProduct(nn.Conv3d):
    """A Conv3d over inputs of its kernel's size."""

    def forward(self, input: Tensor) -> Tensor:
        """Patches (P, C, t, h, w) to (P, D, 1, 1, 1)."""
        return linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def linear_patches(model: Any) -> None:
    """Let Qwen's tower embed its patches so, in place. A swapped tower has an embedding of its own: unchanged."""
    embed = getattr(model.model.visual, "patch_embed", None)
    if embed is not None and type(embed.proj) is nn.Conv3d:
        embed.proj.__class__ = PatchProduct
