"""Measure a model on held-out samples: the loss by token, and greedy answers against the reference answers.

`Evaluation` serves the training loop; `qvl-sft evaluate` runs the same on any model.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.qwen3vl.batch import Batch
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.generate import exact_match, generate
from qvl_core.qwen3vl.loss import token_losses
from qvl_core.training.world import World
from qvl_data.chat import prompt
from qvl_data.sources import Mixture
from qvl_data.stream import ChatSamples

METRICS: Mapping[str, Callable[[Sequence[str], Sequence[str]], float]] = {"exact_match": exact_match}
PICTURES = 24  # test samples whose pictures the report shows
TOKENS = 4096  # per forward of the loss


@dataclass(frozen=True)
class Prediction:
    """One answered question."""

    id: str
    question: str
    reference: str
    answer: str
    correct: bool
    picture: str | None = None  # file in samples/, for the first PICTURES of a list


@dataclass(frozen=True)
class Evaluation:
    """What is measured, on which lists of samples ("validation", "test")."""

    lists: Mapping[str, Mixture]
    processor: Any
    collate: Callable[[Sequence[Encoded]], Batch]
    metrics: Sequence[str]
    max_new_tokens: int
    max_length: int
    samples: int | None  # per list, unless final

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise BadInput(f'evaluate.metrics: there is no metric "{name}"; choose from {", ".join(METRICS)}.')

    def measure(self, model: nn.Module, world: World, final: bool, folder: Path | None = None) -> dict[str, float]:
        """Figures such as validation_loss and test_exact_match, the same on every process.

        Only the validation list is looked at unless `final`. With `folder`, its predictions.jsonl and samples/ show the
        last list's answers.
        """
        figures: dict[str, float] = {}
        for name, mixture in self.lists.items():
            if final or name == "validation":
                chats = ChatSamples(mixture, self.processor, seed=0, max_length=self.max_length, too_long="drop")
                positions = self._positions(mixture, world, final)
                figures[f"{name}_loss"] = self._loss(model, world, chats, positions)
                if self.metrics:
                    predictions = self._predictions(model, world, chats, positions, folder)
                    answers, references = [p.answer for p in predictions], [p.reference for p in predictions]
                    figures |= {f"{name}_{metric}": METRICS[metric](answers, references) for metric in self.metrics}
                    if folder is not None and world.rank == 0:
                        _write_predictions(predictions, folder)
        return figures

    def _positions(self, mixture: Mixture, world: World, final: bool) -> range:
        """This process's part of a fixed random choice. Sharded models need all processes at the same forwards."""
        total = len(mixture) if final or self.samples is None else min(self.samples, len(mixture))
        return range(world.rank, total, world.size) if world.strategy == "ddp" else range(total)
