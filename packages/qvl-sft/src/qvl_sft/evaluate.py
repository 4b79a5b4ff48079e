"""Measure a model on held-out samples: the loss by token, and greedy answers against the reference answers.

`Evaluation` serves the training loop; `qvl-sft evaluate` does the same to any model.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.generate import exact_match, generate
from qvl_core.qwen3vl.loss import token_losses
from qvl_core.recipe.blocks import Source
from qvl_core.run import RunFolder, result
from qvl_core.training.world import World
from qvl_data.chat import encode, prompt
from qvl_data.errors import BadSample
from qvl_data.order import order
from qvl_data.sample import Sample
from qvl_data.sources import Item, Mixture

T = TypeVar("T")
Metric = Callable[[Sequence[str], Sequence[str]], float]  # answers, references -> 0..1
METRICS: Mapping[str, Metric] = {"exact_match": exact_match}

PICTURES = 24  # samples of a list whose pictures are kept for the report
TOKENS = 4096  # per forward of the loss


@dataclass(frozen=True)
class Prediction:
    """One answered question; a line of predictions.jsonl."""

    list: str
    id: str
    question: str
    reference: str
    answer: str
    correct: bool
    picture: str | None = None  # file below the run folder, for the first PICTURES of a list


@dataclass(frozen=True)
class Evaluation:
    """What is measured, on which lists of samples ("validation", "test")."""

    lists: Mapping[str, Mixture]
    processor: Any
    collate: Callable[[Sequence[Encoded]], Batch]
    metrics: Sequence[str] = ("exact_match",)
    max_new_tokens: int = 64
    samples: int | None = None  # per list, before the final evaluation

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise BadInput(f'evaluate.metrics: there is no metric "{name}"; choose from {", ".join(METRICS)}.')

    def measure(
        self, model: nn.Module, world: World, final: bool, run: RunFolder, limit: int | None = None
    ) -> dict[str, float]:
        """Figures such as validation_loss and test_exact_match, the same on every process.

        Before the end only the validation list is looked at. At the end the run folder gets predictions.jsonl and the
        first pictures in samples/; it looks at all samples, or at `limit` of them.
        """
        figures: dict[str, float] = {}
        predictions: list[Prediction] = []
        for name, mixture in self.lists.items():
            if not final and name != "validation":
                continue
            items = _choose(list(mixture.items()), limit if final else self.samples)
            mine = items[world.rank :: world.size] if world.strategy == "ddp" else items  # sharded: all move in step
            figures[f"{name}_loss"] = self._loss(model, world, mixture, mine)
            if self.metrics:
                kept = set(items[:PICTURES]) if final else set()
                answered = self._answer(model, world, name, mixture, mine, run.path, kept)
                answers, references = [p.answer for p in answered], [p.reference for p in answered]
                figures |= {f"{name}_{metric}": METRICS[metric](answers, references) for metric in self.metrics}
                predictions += answered
        if final and predictions and world.rank == 0:
            lines = (json.dumps(asdict(prediction), ensure_ascii=False) + "\n" for prediction in predictions)
            write_atomic(run.path / "predictions.jsonl", "".join(lines))
        return figures

    def _loss(self, model: nn.Module, world: World, mixture: Mixture, items: Sequence[Item]) -> float:
        """Mean over all label tokens, in nats; samples that cannot be used are passed over."""
        total, count = 0.0, 0
        device = next(model.parameters()).device
        for samples in _by_tokens(_encoded(mixture, items, self.processor)):
            losses = token_losses(model, self.collate(samples).to(device))  # (N,)
            total, count = total + float(losses.double().sum()), count + len(losses)
        parts = _all_parts(world, (total, count))
        labels = sum(count for _, count in parts)
        return sum(total for total, _ in parts) / labels if labels else float("nan")

    def _answer(
        self,
        model: nn.Module,
        world: World,
        name: str,
        mixture: Mixture,
        items: Sequence[Item],
        folder: Path,
        kept: set[Item],
    ) -> list[Prediction]:
        """Greedy answers to `items` and to those of the other processes."""
        asked = []
        for item in items:
            try:
                sample = mixture.sample(item)
                encoded, reference = prompt(sample, self.processor)
                picture = _keep_picture(sample, folder, f"{name}-{item.source}-{item.index}") if item in kept else None
                asked.append((sample, encoded, reference, picture))
            except BadSample:
                continue  # training counts bad samples; `qvl-sft check` lists them
        answers = generate(model, self.processor, [encoded for _, encoded, _, _ in asked], self.max_new_tokens)
        mine = [
            Prediction(name, sample.id, _question(sample), reference, answer, _same(answer, reference), picture)
            for (sample, _, reference, picture), answer in zip(asked, answers, strict=True)
        ]
        return [prediction for part in _all_parts(world, mine) for prediction in part]


def evaluate(
    model: str,
    data: Sequence[str],
    out: Path,
    *,
    split: str = "test",
    base: str | None = None,
    samples: int | None = None,
    max_new_tokens: int = 64,
) -> dict[str, Any]:
    """Measure any model on data files or dataset folders; `out` gets result.json, predictions.jsonl and report.html."""
    from qvl_sft.report import evaluation_report
    from qvl_sft.trained import load_trained

    if out.exists() and any(out.iterdir()):
        raise BadInput(f"--out {out}: holds files already; choose another folder.")
    mixture = Mixture([Source(source=source) for source in data], split)
    loaded, processor = load_trained(model, base)
    merge = loaded.config.vision_config.spatial_merge_size
    lay_out = partial(collate, packing=True, merge=merge, pad_id=processor.tokenizer.pad_token_id)
    evaluation = Evaluation({split: mixture}, processor, lay_out, max_new_tokens=max_new_tokens)
    out.mkdir(parents=True, exist_ok=True)
    run = RunFolder(out)
    with torch.no_grad():
        figures = evaluation.measure(loaded, World(0, 1, loaded.device, "single"), True, run, limit=samples)
    values = result("qvl-sft", seed=0, complete=True, figures={"model": model, "data": " ".join(data), **figures})
    run.write_result(values)
    page = evaluation_report(run, model)
    print(*(f"{name} {value:.4f}" for name, value in figures.items()), page, sep="\n")
    return dict(values)


def read_predictions(folder: Path) -> list[Prediction]:
    """The predictions an evaluation left in a run folder; empty if there are none."""
    file = folder / "predictions.jsonl"
    if not file.is_file():
        return []
    return [Prediction(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _all_parts(world: World, mine: T) -> list[T]:
    return world.gather(mine) if world.strategy == "ddp" else [mine]


def _choose(items: list[Item], samples: int | None) -> list[Item]:
    """A fixed random choice, the same in every run and on every process."""
    if samples is None or samples >= len(items):
        return items
    return [items[order(0, place, len(items))] for place in range(samples)]


def _encoded(mixture: Mixture, items: Iterable[Item], processor: Any) -> Iterator[Encoded]:
    for item in items:
        try:
            yield encode(mixture.sample(item), processor)
        except BadSample:
            continue


def _by_tokens(samples: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    """Runs of samples of at most TOKENS tokens together; a longer sample stands alone."""
    group: list[Encoded] = []
    for sample in samples:
        if group and sum(map(len, group)) + len(sample) > TOKENS:
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _question(sample: Sample) -> str:
    return next((message.text for message in reversed(sample.messages) if message.role == "user"), "")


def _same(answer: str, reference: str) -> bool:
    return exact_match([answer], [reference]) == 1.0


def _keep_picture(sample: Sample, folder: Path, name: str) -> str | None:
    """Save the sample's first picture for the report, at most 256 pixels wide; None if it has none."""
    first = next((index for index, media in enumerate(sample.media) if media.kind == "image"), None)
    if first is None:
        return None
    picture = sample.opener.open(sample.media[first])
    picture.thumbnail((256, 256))
    data = io.BytesIO()
    picture.save(data, "PNG")
    path = folder / "samples" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, data.getvalue())
    return f"samples/{path.name}"
