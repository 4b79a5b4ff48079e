"""What a model can do on held-out samples: the bound on their likelihood, and answers right letter for letter.

Each process measures its share of a list; the figures are the same on all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.run import RunFolder
from qvl_core.training.world import World
from qvl_data.chat import TrainOn, encode, prompt
from qvl_data.sources import Mixture
from qvl_mdlm.batch import collation
from qvl_mdlm.layout import Shape
from qvl_mdlm.likelihood import Bound, bound
from qvl_mdlm.sample import Sampling, Written, sample

ROWS = 64  # prompts that are answered together


@dataclass
class Evaluation:
    """Lists of held-out samples and what is measured on them."""

    lists: Mapping[str, Mixture]
    processor: Any
    shape: Shape
    metrics: Sequence[str]
    sampling: Sampling
    train_on: TrainOn = "all"
    samples: int | None = None

    def measure(self, model: nn.Module, world: World, final: bool, run: RunFolder) -> dict[str, float]:
        """Figures such as validation_exact_match and test_nelbo, the same on every process.

        Before the end only the validation list is looked at.
        """
        figures: dict[str, float] = {}
        for name, mixture in self.lists.items():
            if final or name == "validation":
                figures |= self._of_list(model, world, name, mixture, None if final else self.samples)
        return figures

    def _of_list(self, model: Any, world: World, name: str, mixture: Mixture, limit: int | None) -> dict[str, float]:
        items = list(mixture.items())[:limit]
        opened = [mixture.sample(item) for item in items[world.rank :: world.size]]
        figures: dict[str, float] = {}
        wholes = [encode(one, self.processor, train_on=self.train_on) for one in opened]
        parts = world.gather(self._bound(model, wholes))
        found = Bound(np.concatenate([part.nats for part in parts]), np.concatenate([part.tokens for part in parts]))
        figures[f"{name}_loss"] = float(found.of_samples.sum() / found.tokens.sum())
        if "nelbo" in self.metrics:
            figures |= {f"{name}_nelbo": found.mean, f"{name}_nelbo_error": found.error}
        if "exact_match" in self.metrics:
            questions, references = zip(*(prompt(one, self.processor) for one in opened), strict=True)
            written = self._write(model, questions)
            right = [one.text.strip() == answer.strip() for one, answer in zip(written, references, strict=True)]
            everything = [each for part in world.gather(right) for each in part]
            figures[f"{name}_exact_match"] = sum(everything) / len(everything)
        return figures

    def _bound(self, model: Any, wholes: Sequence[Encoded]) -> Bound:
        collate = collation(self.processor, True, patterned=model.config.pattern != "full")
        return bound(model, wholes, self.shape, collate, draws=8)

    def _write(self, model: Any, questions: Sequence[Encoded]) -> list[Written]:
        answers: list[Written] = []
        for start in range(0, len(questions), ROWS):
            answers += sample(model, self.processor, questions[start : start + ROWS], self.sampling)
        return answers
