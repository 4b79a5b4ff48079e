"""Pictures drawn while a model learns: the same few prompts each time, from the same noise."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from qvl_data.drawing.previews import first_ones, write_preview
from qvl_data.sources import Item, Mixture
from qvl_metaquery.coder import Coder
from qvl_metaquery.dropout import Task
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.prompts import Prompt
from qvl_metaquery.sampling import Sampling
from qvl_metaquery.settings import Settings
from qvl_metaquery.wanted import wanted

SHOWN = 8  # prompts


@dataclass
class Preview:
    """`Parts.preview`.

    mixture  whose first prompts are drawn
    """

    mixture: Mixture
    task: Task
    processor: Any
    coder: Coder
    settings: Settings
    shift: float
    sampling: Sampling

    def __call__(self, model: nn.Module, folder: Path, step: int) -> None:
        """Draw all prompts together, and write them to `folder`."""
        pipeline = MetaQueryPipeline(model, self.processor, self.coder, self.settings, self.shift)  # type: ignore[arg-type]
        drawn = pipeline(
            caption=[prompt.text for prompt in self.prompts],
            image=[prompt.pictures for prompt in self.prompts],
            seed=list(range(len(self.prompts))),
            **self.sampling.arguments(),
        ).images
        for number, (prompt, picture) in enumerate(zip(self.prompts, drawn, strict=True)):
            write_preview(folder, step, number, prompt.text, prompt.pictures, picture)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The first ones that are not alike: of other texts, or with pictures of their own."""
        return first_ones(self.mixture, SHOWN, self._read)

    def _read(self, item: Item) -> tuple[object, Prompt]:
        prompt = wanted(self.mixture.sample(item), self.task).prompt
        return (item if prompt.pictures else prompt.text), prompt
