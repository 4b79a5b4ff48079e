"""One call of the transformer, as diffusers' pipelines make it.

    call = open_call(folder)
    predicted = call(transformer, noisy, levels, Given(sources, told, told_mask, bucket))      # (B, N, F)

Shapes: B samples; N tokens of a target and M of a source, of F features; L tokens of a text, of width D.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from torch import Tensor

from qvl_edit.cut import Bucket
from qvl_edit.packing import Grid
from qvl_edit.profile import Profile


@dataclass(frozen=True)
class Given:
    """What a prediction goes by, beside the noisy targets: the same at all steps of a drawing.

    sources         (B, M, F) of each source
    told, its mask  (B, L, D) and (B, L), true where there is a token; None where nothing is padded
    bucket          sizes of all samples, in pixels
    """

    sources: Sequence[Tensor]
    told: Tensor
    mask: Tensor | None
    bucket: Bucket


@dataclass(frozen=True)
class Call(ABC):
    """How a transformer is called.

    grid      cuts pictures into its tokens
    rescaled  what guidance combines is brought back to its length
    width     key of the transformer's config with the width of what it is told
    padded    texts of a forward may differ in length
    """

    grid: Grid
    rescaled: ClassVar[bool] = True
    width: ClassVar[str] = "joint_attention_dim"
    padded: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, transformer: Any, noisy: Tensor, levels: Tensor, given: Given) -> Tensor:
        """(B, N, F): the direction from picture to noise at targets with noise of `levels` (B,) in (0, 1].

        noisy  (B, N, F)
        """

    def drawing(self, transformer: Any) -> "Call":
        """The same for the steps of one drawing, between which nothing changes but the target and its noise."""
        return self


class TwoStreams(Call):
    """Qwen-Image and Qwen-Image-Edit: pictures, the target first, beside the text, which has a stream of its own."""

    def __call__(self, transformer: Any, noisy: Tensor, levels: Tensor, given: Given) -> Tensor:
        dtype = transformer.dtype  # the first parameter may be in fewer bits
        predicted: Tensor = transformer(
            hidden_states=torch.cat([noisy, *given.sources], 1).to(dtype),
            encoder_hidden_states=given.told.to(dtype),
            encoder_hidden_states_mask=given.mask,
            timestep=levels.to(dtype),
            img_shapes=[[(1, *self.grid.blocks(size)) for size in given.bucket.sizes]] * len(noisy),
            return_dict=False,
        )[0]
        return predicted[:, : noisy.shape[1]]


SLOT = 4  # latent places that a token of the text encoder's picture stands for


@dataclass(frozen=True)
class OneStream(Call):
    """Qwen-Image-2.1: one sequence of text and sources as they are told, and the target behind them.

    What stands before does not look at what comes after, nor see the noise's level: text and sources are the same at
    each step of a drawing. `told` has no tokens of pictures: the sources' latents stand in their places. The target's
    position is behind the text, padding included, so that padded texts would have it elsewhere: they are refused.

    gaps   tokens of text before each picture, the first one's from the beginning
    """

    rescaled: ClassVar[bool] = False
    width: ClassVar[str] = "context_in_dim"
    padded: ClassVar[bool] = False

    gaps: tuple[int, ...] = ()
    remembered: QwenImage21KVCache | None = field(default=None, compare=False)

    def __call__(self, transformer: Any, noisy: Tensor, levels: Tensor, given: Given) -> Tensor:
        if given.mask is not None:
            raise ValueError("texts of one forward have one length here; put those of another into another forward")
        dtype, told, sources, bucket = transformer.dtype, given.told, given.sources, given.bucket
        count, length, width = told.shape
        seen = self._seen(length, [source.shape[1] // SLOT for source in sources]).to(told.device)  # (L + seen,)
        states = told.new_zeros(count, len(seen), width)
        states[:, ~seen] = told
        drawn = seen.new_ones(noisy.shape[1] // SLOT)
        shown = [(1, *self.grid.blocks(size)) for size in (*bucket.sources, bucket.target)]
        predicted: Tensor = transformer(
            hidden_states=torch.cat([*sources, noisy], 1).to(dtype),
            encoder_hidden_states=states.to(dtype),
            timestep=levels.to(dtype),
            img_shapes=[shown] * count,
            img_mask=torch.cat([seen, drawn]).expand(count, -1),
            **self._mode(),
            return_dict=False,
        )[0]
        return predicted[:, -noisy.shape[1] :]

    def drawing(self, transformer: Any) -> Call:
        if not transformer.config.causal_condition:
            return self
        return OneStream(self.grid, self.gaps, QwenImage21KVCache(len(transformer.transformer_blocks)))

    def _mode(self) -> dict[str, Any]:
        """Keys and values of text and sources are written at the first step of a drawing, and read at the others."""
        if self.remembered is None:
            return {}
        begun = self.remembered.get_layer(0).k is not None
        return {"kv_cache": self.remembered, "kv_cache_mode": "cached" if begun else "extract"}

    def _seen(self, length: int, slots: Sequence[int]) -> Tensor:
        """(L + seen,) bool, true where a picture stands in a text of so many tokens; `slots` of each picture."""
        parts = [torch.zeros(0, dtype=torch.bool)]
        for gap, count in zip(self.gaps, slots, strict=False):
            parts += [torch.zeros(gap, dtype=torch.bool), torch.ones(count, dtype=torch.bool)]
        before = sum(self.gaps[: len(slots)])
        return torch.cat([*parts, torch.zeros(length - before, dtype=torch.bool)])


def call_class(profile: Profile) -> type[Call]:
    """How checkpoints of a kind are called."""
    return OneStream if profile.one_stream else TwoStreams
