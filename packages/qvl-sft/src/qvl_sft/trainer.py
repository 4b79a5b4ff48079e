"""QVL's batches and loss inside `transformers.Trainer` and TRL's `SFTTrainer`, for those who keep their own trainer.

    trainer = Trainer(
        model=model,                                     # Qwen3VLForConditionalGeneration, or peft's around it
        args=TrainingArguments(..., remove_unused_columns=False),
        train_dataset=rows,                              # anything that qvl-data reads, row by row
        data_collator=ChatCollator(processor),
        compute_loss_func=label_loss,
    )

With TRL: `class Trainer(LabelLoss, SFTTrainer): ...` and `dataset_kwargs={"skip_prepare_dataset": True}`.

The collator hands the stock forward what it takes: a packed row with the positions that keep documents apart, and, in
`logits_to_keep`, the rows that predict a label, so that no other logits are computed. Both trainers count the labels of
all accumulated micro-batches and of all processes, and the loss is the sum over labels divided by that count.

Shapes: T tokens of the packed row, N labels, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_data.chat import encode
from qvl_data.row import read_row
from qvl_data.sample import Sample
from qvl_sft.batch import collation


@dataclass(frozen=True)
class ChatCollator:
    """Rows of chats to one packed row of tensors, as the forward of Qwen3-VL takes them.

    processor   a Qwen3VLProcessor
    max_length  longest sample in tokens; a longer one is an error, or loses its oldest turns (`cut`)
    train_on    learn all answers, the last one, or none but those that the data marks
    media_root  folder that relative paths of pictures start from; absolute ones must lie below an `allow_root`

    A row is a `qvl_data.sample.Sample`, or a dict in any format that qvl-data reads (chat messages with pictures as
    PIL images, bytes or paths, conversations of LLaVA or ShareGPT ...). Raises BadInput for a row that cannot be used.
    """

    processor: Any
    max_length: int | None = None
    too_long: Literal["error", "cut"] = "error"
    train_on: Literal["all", "last", "none"] = "all"
    media_root: Path | None = None
    allow_root: tuple[Path, ...] = ()

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """`input_ids` and `labels` (1, T), `position_ids` (4, 1, T), `logits_to_keep` (N,), pixels and grids."""
        samples = [self._encoded(self.sample(row, number)) for number, row in enumerate(rows)]
        batch = collation(self.processor)(samples)
        labels = torch.from_numpy(np.concatenate([sample.labels for sample in samples])[None])  # (1, T)
        return batch.inputs() | {"logits_to_keep": batch.label_rows, "labels": labels, "use_cache": False}

    def sample(self, row: Any, number: int) -> Sample:
        """A row of the batch as a sample. Raises BadSample."""
        return read_row(row, f"row {number} of the batch", self.media_root, self.allow_root)

    def _encoded(self, sample: Sample) -> Encoded:
        encoded = encode(
            sample, self.processor, max_length=self.max_length, too_long=self.too_long, train_on=self.train_on
        )
        if encoded.weights is not None:
            weight = next(weight for weight in encoded.weights if weight not in (0, 1))
            raise BadInput(
                f"sample {sample.id}: an answer has weight {weight:g}, which only `qvl-sft train` serves; remove it."
            )
        return encoded


def label_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Mean negative log-likelihood in nats over `num_items_in_batch` labels; default: over those of this batch.

    outputs  of a forward with `logits_to_keep`: logits (1, N, V), one row for each label
    labels   (1, T), not shifted: as both trainers count them
    """
    targets = labels[labels != IGNORE]  # (N,); no document begins with a label
    total = cross_entropy(outputs.logits[0].float(), targets, reduction="sum")
    return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)


class LabelLoss:
    """Put before TRL's SFTTrainer: the Trainer's own way from a batch to `label_loss`.

    SFTTrainer computes the probabilities of whole padded rows for its figures of entropy and accuracy, which it then
    does not log.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.compute_loss_func = label_loss

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        from transformers import Trainer

        trainer: Any = self
        return Trainer.compute_loss(trainer, *arguments, **options)
