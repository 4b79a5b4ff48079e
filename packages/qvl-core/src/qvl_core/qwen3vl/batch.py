"""Encoded samples as the tensors of one forward: packed end to end in one row, or padded on the right.

    batch = collate(samples, packing=True, merge=2, pad_id=151643).to(device)
    hidden = model.model(**batch.inputs(), use_cache=False).last_hidden_state

Packed rows follow the library's contract: 4-row positions [text; time; height; width] whose text row starts again at
every document, no mask, no cache. Everything that needs a look at the values (which hidden rows predict labels, where
documents and frames end) is worked out here, on the host, so that the step does not wait for the device.

Shapes: B rows, T tokens per row (padded: of the longest sample), S samples, N labels, M media, P patches, F frames.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.positions import positions

Array = NDArray[Any]
S = TypeVar("S", bound=Sized)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Inputs and targets of one forward. Fields that the model body takes have its argument's name."""

    ids: tuple[str, ...]
    """(S,) names of the samples, for messages."""
    documents: tuple[int, ...]
    """(S,) lengths of the samples in tokens."""
    cu_seqlens: Tensor
    """(S + 1,) int32: bounds of the documents in a packed row."""
    types: Tensor
    """(B, T) int64: 0 text, 1 image, 2 video (`mm_token_type_ids`)."""
    label_rows: Tensor
    """(N,) int64: rows of the flattened hidden states (B * T, D) that predict a label: the token before it."""
    targets: Tensor
    """(N,) int64: the labels."""
    row_of_label: Tensor
    """(N,) int64: sample that each label belongs to."""
    weights: Tensor | None = None
    """(N,) float32: factor of each label in the loss; None: 1 for all."""

    input_ids: Tensor
    """(B, T) int64; packed: B = 1."""
    position_ids: Tensor
    """(4, B, T) int64: text, time, height, width."""
    attention_mask: Tensor | None = None
    """(B, T) int64: 1 for tokens, 0 for padding; None when packed."""
    pixel_values: Tensor | None = None
    """(P, C) float32: patches of all images, in order."""
    image_grid_thw: Tensor | None = None
    """(M, 3) int64: time, height, width of each image in patches."""
    image_cu_seqlens: Tensor | None = None
    """(F + 1,) int32: bounds of the pictures among the patches; each attends only to itself."""
    image_max_seqlen: int | None = None
    """Patches of the largest picture."""
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    video_cu_seqlens: Tensor | None = None
    """(F + 1,) int32: bounds of the frames; each attends only to itself."""
    video_max_seqlen: int | None = None

    @property
    def count(self) -> int:
        """Labels of the batch."""
        return len(self.targets)

    @property
    def tokens(self) -> int:
        """Tokens of the batch, padding not counted."""
        return sum(self.documents)

    def inputs(self) -> dict[str, Any]:
        """Arguments for `model.model(**batch.inputs(), use_cache=False)`, whatever its attention implementation."""
        inputs = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _OURS}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        inputs["mm_token_type_ids"] = self.types
        if self.attention_mask is None:
            inputs |= {"cu_seq_lens_q": self.cu_seqlens, "cu_seq_lens_k": self.cu_seqlens}
            inputs |= {"max_length_q": max(self.documents), "max_length_k": max(self.documents)}
        return inputs

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """A copy on `device`; non_blocking pays only from pinned memory."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory, from which copies to a GPU run beside the computation."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)


_OURS = {"ids", "documents", "cu_seqlens", "types", "label_rows", "targets", "row_of_label", "weights"}


def collate(samples: Sequence[Encoded], packing: bool, merge: int, pad_id: int) -> Batch:
    """Lay samples end to end (`packing`) or one below the other, padded on the right with `pad_id`.

    merge: side of the patch square that one token covers (`vision_config.spatial_merge_size`)
    Raises BadInput for an empty list and for samples whose media tokens do not match their grids.
    """
    # The token before a label predicts it, so a document's first token is never predicted from another document.
    before = [np.flatnonzero(sample.labels[1:] != IGNORE) for sample in samples]
    return assemble(samples, before, 1, [four_rows(sample, merge) for sample in samples], packing, pad_id)


def by_tokens(samples: Iterable[S], most: int, length: Callable[[S], int] = len) -> Iterator[list[S]]:
    """Runs of samples of at most `most` tokens together, for one forward each; a longer sample stands alone."""
    group: list[S] = []
    tokens = 0
    for sample in samples:
        own = length(sample)
        if group and tokens + own > most:
            yield group
            group, tokens = [], 0
        group.append(sample)
        tokens += own
    if group:
        yield group


def assemble(
    samples: Sequence[Encoded],
    rows: Sequence[Array],
    shift: int,
    positions: Sequence[Array],
    packing: bool,
    pad_id: int,
) -> Batch:
    """`collate` with a choice of what predicts a label.

    rows       (n,) of each sample: tokens whose hidden states predict a label
    shift      how many tokens later that label stands: 1 for the next token, 0 for a masked one
    positions  (4, L) of each sample
    """
    if not samples:
        raise BadInput("a batch needs at least one sample; the list is empty.")
    lengths = [len(sample) for sample in samples]
    starts = np.cumsum([0, *lengths[:-1]]) if packing else np.arange(len(samples)) * max(lengths)
    join = _end_to_end if packing else padded
    return Batch(
        ids=tuple(sample.id for sample in samples),
        documents=tuple(lengths),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
        types=join([sample.types for sample in samples]),
        label_rows=torch.from_numpy(np.concatenate([row + start for row, start in zip(rows, starts, strict=True)])),
        targets=torch.from_numpy(np.concatenate([s.labels[row + shift] for s, row in zip(samples, rows, strict=True)])),
        row_of_label=torch.from_numpy(np.repeat(np.arange(len(samples)), [len(row) for row in rows])),
        weights=_weights(samples, [row + shift for row in rows]),
        input_ids=join([sample.ids for sample in samples], pad_id),
        position_ids=join(list(positions)),
        attention_mask=None if packing else padded([np.ones_like(sample.ids) for sample in samples]),
        **media(samples),
    )


def _weights(samples: Sequence[Encoded], places: Sequence[Array]) -> Tensor | None:
    """(N,) factor of each label, by where the labels stand in each sample."""
    if all(sample.weights is None for sample in samples):
        return None
    pairs = zip(samples, places, strict=True)
    each = [np.ones(len(at), np.float32) if s.weights is None else s.weights[at] for s, at in pairs]
    return torch.from_numpy(np.concatenate(each))


def four_rows(sample: Encoded, merge: int) -> NDArray[np.int64]:
    """Positions (4, L): the text position, which tells documents apart, above time, height and width."""
    return np.concatenate([np.arange(len(sample))[None], positions(sample, merge)])


def media(samples: Sequence[Encoded]) -> dict[str, Any]:
    """Patches, grids and frame bounds of all images and videos, by the model body's argument names."""
    images = [(s.images, s.image_grid) for s in samples if s.images is not None and s.image_grid is not None]
    videos = [(s.videos, s.video_grid) for s in samples if s.videos is not None and s.video_grid is not None]
    return _media("image", "pixel_values", images) | _media("video", "pixel_values_videos", videos)


def _media(kind: str, pixel_name: str, parts: list[tuple[Array, Array]]) -> dict[str, Any]:
    if not parts:
        return {}
    grid = np.concatenate([grid for _, grid in parts])  # (M, 3)
    frames = np.repeat(grid[:, 1] * grid[:, 2], grid[:, 0])  # (F,) patches of each frame
    return {
        pixel_name: torch.from_numpy(np.concatenate([pixels for pixels, _ in parts])),
        f"{kind}_grid_thw": torch.from_numpy(grid),
        f"{kind}_cu_seqlens": torch.from_numpy(np.cumsum([0, *frames], dtype=np.int32)),
        f"{kind}_max_seqlen": int(frames.max()),
    }


def _end_to_end(rows: list[Array], fill: int = 0) -> Tensor:
    """(..., L) of each sample as (..., 1, T)."""
    return torch.from_numpy(np.concatenate(rows, axis=-1)[..., None, :])


def padded(rows: list[Array], fill: int = 0) -> Tensor:
    """(..., L) of each sample as (..., B, T), padded on the right."""
    out = np.full((*rows[0].shape[:-1], len(rows), max(row.shape[-1] for row in rows)), fill, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        out[..., i, : row.shape[-1]] = row
    return torch.from_numpy(out)
