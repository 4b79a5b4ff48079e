"""Instructions and pictures as what Qwen-Image's transformer is told: hidden states of Qwen2.5-VL, or of Qwen3-VL.

    embedder = Embedder.open(folder, read_profile(folder), dtype, device)
    (one,) = embedder([EncoderInput(("make it red", "把它变红", ""), pictures)])
    one.whole(0)                                        # (L, D), of the first text
    states, mask = padded([one.whole(0), one.whole(2)]) # (B, L, D), (B, L)

Texts with the same pictures share what stands before them, pictures above all (196 of some 225 tokens with one). That
part is computed once and its keys and values are read by each text, as attention only looks back; what comes out is the
same (1e-5 in fp32) as of one forward for each text. So a batch is a number of picture sets, whatever texts they have.

Pictures are given as `Geometry.vl` has them. Positions are those of their rows and columns: transformers 5 counts
through without `mm_token_type_ids`, which of diffusers' pipelines only that of 2.1 passes, so the others' differ.

Qwen-Image-2.1 is told what there is before the encoder's last norm, and of texts alone.

Shapes: B rows of L tokens of width D; P of them shared, S of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qvl_core.errors import BadInput, first_line
from qvl_edit.profile import Profile
from qvl_edit.template import Tokens


@dataclass(frozen=True)
class EncoderInput:
    """Texts about the same pictures, each to be embedded. A text may be empty, and there may be no picture."""

    texts: tuple[str, ...]
    pictures: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """What was asked: tokens (P, D) that all texts share, and those (S, D) of each."""

    shared: Tensor
    texts: tuple[Tensor, ...]

    def whole(self, number: int) -> Tensor:
        """(L, D), the embedding of one text."""
        return torch.cat([self.shared, self.texts[number]])


@dataclass(frozen=True)
class Embedder:
    """A text encoder and what reads for it.

    model      of the class that the profile names
    pictures   its image processor; None where there are never pictures
    """

    model: Any
    tokenizer: Any
    pictures: Any
    profile: Profile

    @classmethod
    def open(cls, folder: Path, profile: Profile, dtype: torch.dtype, device: Any = "cpu") -> Self:
        """Of a checkpoint in the layout of diffusers. Raises BadInput for what cannot be read, or does not belong."""
        import transformers

        from qvl_core.qwen3vl.whole import load_part

        tokenizer = open_tokenizer(folder, profile)
        profile.check(tokenizer)
        pictures = open_pictures(folder, profile)
        model = load_part(getattr(transformers, profile.encoder), folder / "text_encoder", dtype)
        return cls(model.to(device).eval().requires_grad_(False), tokenizer, pictures, profile)

    def __call__(self, asked: Sequence[EncoderInput]) -> list[Embedded]:
        """The embeddings of each, in the model's type and on its device. Raises BadInput for pictures of sizes that the
        image processor changes, where the autoencoder has to be shown them as they are."""
        if not self.profile.one_stream:
            return self._embedded(asked)
        norm = self.model.model.language_model.norm
        with norm.register_forward_hook(lambda module, given, made: given[0]):
            return self._embedded(asked)

    @torch.no_grad()
    def _embedded(self, asked: Sequence[EncoderInput]) -> list[Embedded]:
        pixels, grid, seen = self._pixels([picture for one in asked for picture in one.pictures])
        rows: list[list[Tokens]] = []
        at = 0
        for one in asked:
            template, count = self.profile.template(len(one.pictures)), len(one.pictures)
            rows.append([template.tokens(text, seen[at : at + count], self.tokenizer) for text in one.texts])
            at += count

        firsts = [row[0] for row in rows]
        ids, mask = self._stacked([one.ids[: one.shared] for one in firsts])  # (B, P)
        types, _ = self._stacked([one.types[: one.shared] for one in firsts])
        positions, start = self._positions(ids, types, mask, grid)
        shared = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            pixel_values=pixels,
            image_grid_thw=grid,
            use_cache=True,
        )

        owner = torch.tensor([number for number, row in enumerate(rows) for _ in row], device=ids.device)
        ends, ends_mask = self._stacked([one.ids[one.shared :] for row in rows for one in row])  # (texts, S)
        cache = shared.past_key_values
        cache.batch_select_indices(owner)
        behind = start[owner, None] + torch.arange(ends.shape[1], device=ids.device)
        texts = self.model.model(
            input_ids=ends,
            attention_mask=torch.cat([mask[owner], ends_mask], 1),
            position_ids=behind.expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        )

        states = iter(zip(texts.last_hidden_state, ends_mask.sum(1).tolist(), strict=True))
        found = []
        for one, row, tokens in zip(asked, rows, shared.last_hidden_state, strict=True):
            dropped = self.profile.template(len(one.pictures)).unshown(self.tokenizer)
            length = row[0].shared
            own = [state[max(0, dropped - length) : end] for state, end in (next(states) for _ in row)]
            before = tokens[dropped:length]
            if self.profile.one_stream:
                before = before[torch.from_numpy(row[0].types[dropped:length] == 0).to(before.device)]
            found.append(Embedded(before, tuple(own)))
        return found

    def _pixels(self, pictures: Sequence[Image.Image]) -> tuple[Tensor | None, Tensor | None, list[int]]:
        """Patches, rows and columns of patches, and the number of tokens of each picture."""
        if not pictures:
            return None, None, []
        read = self.pictures(images=list(pictures), return_tensors="pt").to(self.model.device)
        grid = read["image_grid_thw"]
        if self.profile.one_stream:
            self._check_sizes(pictures, grid)
        return read["pixel_values"], grid, (grid.prod(-1) // self.pictures.merge_size**2).tolist()

    def _check_sizes(self, pictures: Sequence[Image.Image], grid: Tensor) -> None:
        """Each token stands for the same pixels as four of the autoencoder's places."""
        for picture, (_, rows, columns) in zip(pictures, grid.tolist(), strict=True):
            size = (columns * self.pictures.patch_size, rows * self.pictures.patch_size)
            if size != picture.size:
                raise BadInput(
                    f"image: the text encoder's processor makes {size[0]} x {size[1]} pixels of {picture.width} x "
                    f"{picture.height}, which {self.profile.name} has to be shown as they are; choose another size."
                )

    def _positions(self, ids: Tensor, types: Tensor, mask: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor]:
        """(3, B, P) time, row and column of each token, and (B,) where they go on."""
        if grid is None:
            return (mask.cumsum(1) - 1).clamp(min=0).expand(3, -1, -1), mask.sum(1)
        positions, more = self.model.model.get_rope_index(ids, types, grid, attention_mask=mask)
        return positions, mask.sum(1) + more[:, 0]

    def _stacked(self, rows: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        """(B, L) of rows of different lengths, and which of it is theirs."""
        padded = pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        return padded.to(self.model.device), mask.to(self.model.device)


def open_tokenizer(folder: Path, profile: Profile) -> Any:
    """Of a checkpoint in the layout of diffusers, which in that of 2.1 is a part of the processor. Raises BadInput."""
    from transformers import AutoTokenizer

    return _reader(AutoTokenizer, folder / ("processor" if profile.one_stream else "tokenizer"))


def open_pictures(folder: Path, profile: Profile) -> Any:
    """The image processor of a checkpoint in the layout of diffusers; None where there are never pictures. Raises
    BadInput."""
    from transformers import AutoImageProcessor

    return _reader(AutoImageProcessor, folder / "processor") if profile.pictures else None


def _reader(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: cannot be read ({first_line(error)}); copy it again.") from None


def padded(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """(B, L, D) of embeddings (L, D), zeros behind shorter ones, and (B, L), true where there is one: without this mask
    the transformer takes the zeros for words. None where nothing is padded: attention without a mask has the faster
    kernels."""
    return joined([(one,) for one in embeddings])


def joined(embeddings: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor | None]:
    """`padded` of embeddings in pieces (L_i, D), one behind the other. Each piece is copied once, to its place."""
    if len(embeddings) == 1:
        return torch.cat(list(embeddings[0]))[None], None
    counts = [sum(map(len, pieces)) for pieces in embeddings]
    longest, shortest = max(counts), min(counts)
    if longest == shortest:
        return torch.cat([part for pieces in embeddings for part in pieces]).view(len(counts), longest, -1), None
    zeros = embeddings[0][0].new_zeros(longest - shortest, embeddings[0][0].shape[1])
    laid = [part for pieces, n in zip(embeddings, counts, strict=True) for part in (*pieces, zeros[: longest - n])]
    states = torch.cat(laid).view(len(counts), longest, -1)  # (B, L, D)
    lengths = torch.tensor(counts, device=states.device)
    return states, torch.arange(longest, device=states.device) < lengths[:, None]
