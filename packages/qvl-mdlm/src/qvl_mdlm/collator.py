"""Rows of chats as tensors, for `Qwen3VLTrainer`: nothing is masked yet, the labels tell what may be.

    collator = create_qwen3_vl_collator(processor, mask_prompt_loss=True, max_seq_length=2048)
    batch = collator([{"messages": [...], "image": picture}, ...])

Shapes: B rows, T tokens of the longest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.batch import media, padded
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_data.chat import encode
from qvl_data.errors import BadSample, TooLong
from qvl_data.row import read_row
from qvl_mdlm.media import Media

MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


@dataclass(frozen=True)
class Collator:
    """See `create_qwen3_vl_collator`."""

    processor: Any
    mask_prompt_loss: bool = True
    max_seq_length: int | None = 2048
    train_on: Literal["all", "last"] = "all"
    pad_to: int | None = 32
    media_root: Path | None = None
    allow_root: tuple[Path, ...] = ()

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `mm_token_type_ids` (B, T), pixels and grids of all media in order.

        labels   (B, T): the token where it may be masked, else -100; not shifted
        weights  (B, T): what each label counts, if an answer has a weight of its own
        """
        samples = [self.encoded(row, f"row {number} of the batch") for number, row in enumerate(rows)]
        pad = self.processor.tokenizer.pad_token_id
        batch = {
            "input_ids": padded([sample.ids for sample in samples], pad),
            "attention_mask": padded([np.ones_like(sample.ids) for sample in samples]),
            "mm_token_type_ids": padded([sample.types for sample in samples]),
            "labels": padded([sample.labels for sample in samples], IGNORE),
        }
        if any(sample.weights is not None for sample in samples):
            weights = [np.ones(len(one), np.float32) if one.weights is None else one.weights for one in samples]
            batch["weights"] = padded(weights)
        return batch | {name: value for name, value in media(samples).items() if name in MEDIA}

    def encoded(self, row: Any, place: str) -> Encoded:
        """One row in tokens. Raises BadSample."""
        sample = read_row(row, place, self.media_root, self.allow_root)
        try:
            return encode(
                sample,
                self.processor,
                max_length=self.max_seq_length,
                too_long="cut",
                train_on=self.train_on,
                prompts=not self.mask_prompt_loss,
                empty_answers=False,
            )
        except TooLong:
            problem = f"more than max_seq_length {self.max_seq_length} tokens, its oldest turns left out"
            fix = "raise max_seq_length, or make its pictures smaller (processor.image_processor.size)"
            raise BadSample("too_long", f"{problem}; {fix}", place) from None


def create_qwen3_vl_collator(
    processor: Any,
    mask_prompt_loss: bool = True,
    max_seq_length: int | None = 2048,
    train_on: Literal["all", "last"] = "all",
    pad_to: int | None = 32,
    media_root: Path | None = None,
    allow_root: tuple[Path, ...] = (),
) -> Collator:
    """What makes batches of rows of chats, for `Qwen3VLTrainer`.

    processor         a Qwen3VLProcessor
    mask_prompt_loss  learn answers alone; false: the text of prompts as well, but neither pictures nor the template
    max_seq_length    longest chat in tokens; a longer one loses its oldest turns, pictures are never cut. What is added
                      to it (`pad_to`) is not counted
    train_on          learn all answers, or the last one
    pad_to            fill answers with end tokens to a multiple of this: the model learns to stop. None: not at all
    media_root        folder that relative paths of pictures start from; absolute ones must lie below an `allow_root`

    A row is a `qvl_data.sample.Sample`, or a dict in any format that qvl-data reads. A row that cannot be used is a
    BadSample that names it.
    """
    if not hasattr(processor, "image_processor"):
        raise BadInput(
            f"processor: a {type(processor).__name__} knows no pictures; give AutoProcessor.from_pretrained(...)."
        )
    if train_on not in ("all", "last"):
        raise BadInput(f"train_on {train_on!r}: must be all or last.")
    if pad_to is not None and pad_to < 1:
        raise BadInput(f"pad_to {pad_to}: must be at least 1, or None.")
    return Collator(processor, mask_prompt_loss, max_seq_length, train_on, pad_to, media_root, allow_root)


def split(batch: dict[str, Any], config: Any) -> list[Encoded]:
    """The rows of a collator's batch, each alone and without padding. The tensors have to lie on the host.

    What is missing is worked out: token types from the ids that stand for pictures, no padding without a mask.

    Raises BadInput for a batch that another collator made in another way.
    """
    ids, labels = (batch.get(name) for name in ("input_ids", "labels"))
    if not isinstance(ids, Tensor) or not isinstance(labels, Tensor) or ids.ndim != 2 or ids.shape != labels.shape:
        raise BadInput(
            f"data_collator: gave {', '.join(batch) or 'nothing'}; Qwen3VLTrainer needs input_ids and labels (B, T), "
            "labels -100 where nothing may be masked: use create_qwen3_vl_collator(processor)."
        )
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    types = batch.get("mm_token_type_ids")
    if types is None:
        types = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id)
    weights = batch.get("weights")
    merge = config.vision_config.spatial_merge_size
    images = Media("image", *_arrays("image", batch.get("pixel_values"), batch.get("image_grid_thw")), merge)
    videos = Media("video", *_arrays("video", batch.get("pixel_values_videos"), batch.get("video_grid_thw")), merge)
    samples = []
    for row, kept in enumerate(mask.bool()):
        kind = types[row][kept]
        pixels, grid = images.take(int((kind == 1).sum()))
        clips, clip_grid = videos.take(int((kind == 2).sum()))
        samples.append(
            Encoded(
                id=f"row {row}",
                ids=ids[row][kept].numpy(),
                labels=labels[row][kept].numpy(),
                types=kind.numpy(),
                weights=None if weights is None else weights[row][kept].numpy(),
                images=pixels,
                image_grid=grid,
                videos=clips,
                video_grid=clip_grid,
            )
        )
    images.check_empty()
    videos.check_empty()
    return samples


def _arrays(kind: str, pixels: Tensor | None, grid: Tensor | None) -> tuple[Any, Any]:
    if (pixels is None) != (grid is None):
        raise BadInput(f"data_collator: {kind}s need both pixels and grid; give both, or neither.")
    return None if pixels is None else pixels.float().numpy(), None if grid is None else grid.numpy()
