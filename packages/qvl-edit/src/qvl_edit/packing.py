"""From pixels to the tokens of the transformer, and back: a token is a block of latent places with all their channels.

    grid = read_grid(folder)
    tokens = grid.pack(latents)                   # (B, C, h, w) to (B, N, F)
    latents = grid.unpack(tokens, (512, 768))

Shapes: B samples, C channels, h x w of a latent, N tokens of F features. A token's features are ordered (channel, row,
column), tokens row by row, as diffusers' Qwen-Image pipelines have them.
"""

from dataclasses import dataclass

from torch import Tensor

from qvl_edit.cut import Size


@dataclass(frozen=True)
class Grid:
    """How fine a picture is cut.

    scale  pixels along a side of a latent place
    side   places along a side of a token (`patch_size` of the transformer)
    """

    scale: int = 8
    side: int = 2

    @property
    def unit(self) -> int:
        """Pixels of which sides are multiples: two places, which are one token of Qwen-Image, or two of 2.1."""
        return 2 * self.scale

    def places(self, size: Size) -> Size:
        """Rows and columns of the latent of a picture of so many pixels."""
        return size[0] // self.scale, size[1] // self.scale

    def blocks(self, size: Size) -> Size:
        """Rows and columns of its tokens."""
        return size[0] // (self.scale * self.side), size[1] // (self.scale * self.side)

    def tokens(self, size: Size) -> int:
        """Tokens of a picture of so many pixels."""
        rows, columns = self.blocks(size)
        return rows * columns

    def features(self, channels: int) -> int:
        """Of a token."""
        return channels * self.side**2

    def pack(self, latents: Tensor) -> Tensor:
        """(B, N, F) of (B, C, h, w)."""
        count, channels, height, width = latents.shape
        side = self.side
        blocks = latents.reshape(count, channels, height // side, side, width // side, side)
        return blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * side * side)

    def unpack(self, tokens: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) of (B, N, F), of a picture of so many pixels."""
        count, _, features = tokens.shape
        rows, columns = self.blocks(size)
        side = self.side
        blocks = tokens.reshape(count, rows, columns, features // side**2, side, side)
        return blocks.permute(0, 3, 1, 4, 2, 5).reshape(count, -1, rows * side, columns * side)
