"""Pictures drawn while a model learns: the same few prompts each time, from the same noise.

samples/prompt-00-0.png         the first picture that prompt 0 shows
samples/step-000160-00.png      what was drawn of prompt 0 after 160 steps; beside it its text, as .txt
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from qvl_core.errors import QVLError
from qvl_core.files import write_atomic
from qvl_data.errors import BadSample
from qvl_data.order import order
from qvl_data.shown import png
from qvl_data.sources import Mixture
from qvl_metaquery.coder import Coder
from qvl_metaquery.dropout import Task
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.prompts import Prompt
from qvl_metaquery.sampling import Sampling
from qvl_metaquery.settings import Settings
from qvl_metaquery.wanted import wanted

log = logging.getLogger(__name__)
SHOWN = 8  # prompts
LOOKED_AT = 200  # samples, of which prompts that differ are taken


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
        """Draw all prompts together, and write them to `folder`. Nothing that cannot be drawn ends a run."""
        pipeline = MetaQueryPipeline(model, self.processor, self.coder, self.settings, self.shift)  # type: ignore[arg-type]
        try:
            drawn = pipeline(
                caption=[prompt.text for prompt in self.prompts],
                image=[prompt.pictures for prompt in self.prompts],
                seed=list(range(len(self.prompts))),
                **self.sampling.arguments(),
            ).images
        except QVLError as error:
            log.warning("step %d: no pictures: %s", step, error)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for number, (prompt, picture) in enumerate(zip(self.prompts, drawn, strict=True)):
            name = f"step-{step:06d}-{number:02d}"
            write_atomic(folder / f"{name}.txt", prompt.text)
            write_atomic(folder / f"{name}.png", png(picture))
            for place, shown in enumerate(prompt.pictures):
                write_atomic(folder / f"prompt-{number:02d}-{place}.png", png(shown))

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The first ones that are not alike: of other texts, or with pictures of their own."""
        found: dict[object, Prompt] = {}
        many = self.mixture.chosen
        for place in range(min(LOOKED_AT, many)):
            item = self.mixture.item(order(0, place, many))
            try:
                prompt = wanted(self.mixture.sample(item), self.task).prompt
            except BadSample:
                continue
            found.setdefault(item if prompt.pictures else prompt.text, prompt)
            if len(found) == SHOWN:
                break
        return list(found.values())
