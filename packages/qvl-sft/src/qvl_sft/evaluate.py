"""Measure a model on held-out samples: the loss by token, and greedy answers against the reference answers.

`Evaluation` serves the training loop; `qvl-sft evaluate` does the same to any model.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.files import new_folder, write_atomic
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.generate import exact_match, generate
from qvl_core.qwen3vl.loss import token_losses
from qvl_core.run import RunFolder, read_records, result
from qvl_core.training.world import World
from qvl_data.chat import TrainOn, encode, prompt
from qvl_data.errors import BadSample
from qvl_data.order import order
from qvl_data.sample import Sample
from qvl_data.sources import Item, Mixture, read_sources
from qvl_sft.batch import Collate, collation

Metric = Callable[[Sequence[str], Sequence[str]], float]  # answers, references -> a figure, accuracies in 0..1
METRICS: dict[str, Metric] = {"exact_match": exact_match}

PICTURES = 24  # samples of a list whose pictures are kept for the report
TOKENS = 4096  # per forward of the loss
HELD = 128  # samples whose pixels are held at a time


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Make a function of all answers and references a metric that recipes can name; for --plugin files."""

    def register(metric: Metric) -> Metric:
        METRICS[name] = metric
        return metric

    return register


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
    collate: Collate
    metrics: Sequence[str] = ("exact_match",)
    max_new_tokens: int = 64
    samples: int | None = None  # per list, before the final evaluation
    train_on: TrainOn = "all"  # answers whose loss is measured, each label counting once

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise BadInput(f'evaluate.metrics: there is no metric "{name}"; choose from {", ".join(METRICS)}.')

    def measure(
        self, model: nn.Module, world: World, final: bool, run: RunFolder, limit: int | None = None
    ) -> dict[str, float]:
        """Figures such as validation_loss and test_exact_match, the same on every process.

        Before the end only the validation list is looked at. At the end the run folder gets predictions.jsonl and the
        first pictures in samples/; it looks at all samples, or at `limit` of them. Samples that cannot be used are left
        out, counted (validation_left_out) and, at the end, listed in left_out.jsonl.
        """
        figures: dict[str, float] = {}
        predictions: list[Prediction] = []
        left_out: list[dict[str, str]] = []
        for name, mixture in self.lists.items():
            if not final and name != "validation":
                continue
            items = _choose(list(mixture.items()), limit if final else self.samples)
            mine = items[world.rank :: world.size]
            kept = set(items[:PICTURES]) if final else set()
            parts = world.gather(self._measure(model, name, mixture, mine, kept, run.path))
            labels = sum(part.labels for part in parts)
            figures[f"{name}_loss"] = sum(part.loss for part in parts) / labels if labels else float("nan")
            if answered := _dealt_back([part.predictions for part in parts]):
                answers, references = [p.answer for p in answered], [p.reference for p in answered]
                figures |= {f"{name}_{metric}": METRICS[metric](answers, references) for metric in self.metrics}
                predictions += answered
            if bad := [entry for part in parts for entry in part.left_out]:
                figures[f"{name}_left_out"] = float(len(bad))
                left_out += bad
        if final and world.rank == 0:
            _write_lines(run.path / "predictions.jsonl", [asdict(prediction) for prediction in predictions])
            _write_lines(run.path / "left_out.jsonl", left_out)
        return figures

    def _measure(
        self, model: nn.Module, name: str, mixture: Mixture, items: Sequence[Item], kept: set[Item], folder: Path
    ) -> "_Measured":
        """Loss and greedy answers of this process's items, HELD at a time."""
        measured = _Measured()
        device = next(model.parameters()).device
        for start in range(0, len(items), HELD):
            opened = []
            for item in items[start : start + HELD]:
                try:
                    opened.append(self._open(mixture, item, folder, name, item in kept))
                except BadSample as error:
                    entry = {"list": name, "id": mixture.place(item), "reason": error.reason, "message": str(error)}
                    measured.left_out.append(entry)
            for samples in _by_tokens(one.whole for one in opened):
                losses = token_losses(model, self.collate(samples).to(device))  # (N,)
                measured.loss += float(losses.double().sum())
                measured.labels += len(losses)
            if self.metrics:
                answers = generate(model, self.processor, [one.question for one in opened], self.max_new_tokens)
                measured.predictions += [one.answered(answer) for one, answer in zip(opened, answers, strict=True)]
        return measured

    def _open(self, mixture: Mixture, item: Item, folder: Path, name: str, keep_picture: bool) -> "_Opened":
        sample = mixture.sample(item)
        whole = encode(sample, self.processor, train_on=self.train_on)
        question, reference = prompt(sample, self.processor)
        picture = _keep_picture(sample, folder, f"{name}-{item.source}-{item.index}") if keep_picture else None
        return _Opened(name, sample, whole, question, reference, picture)


@dataclass
class _Measured:
    """What one process found out about its share of a list."""

    loss: float = 0.0  # summed over labels, in nats
    labels: int = 0
    predictions: list[Prediction] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Opened:
    """A sample with its answer, for the loss, and without, to be answered."""

    list: str
    sample: Sample
    whole: Encoded
    question: Encoded
    reference: str
    picture: str | None

    def answered(self, answer: str) -> Prediction:
        correct = exact_match([answer], [self.reference]) == 1.0
        asked = next((message.text for message in reversed(self.sample.messages) if message.role == "user"), "")
        return Prediction(self.list, self.sample.id, asked, self.reference, answer, correct, self.picture)


def evaluate(
    model: str,
    data: Sequence[str],
    out: Path,
    *,
    split: str = "test",
    base: str | None = None,
    samples: int | None = None,
    max_new_tokens: int = 64,
    media_root: Path | None = None,
    allow_root: Sequence[Path] = (),
) -> dict[str, Any]:
    """Measure any model on data files or dataset folders; `out` gets result.json, predictions.jsonl and report.html."""
    from qvl_sft.report import evaluation_report
    from qvl_sft.trained import load_trained

    mixture = Mixture(read_sources(*data), split, media_root, allow_root)
    with new_folder(out) as aside:
        loaded, processor = load_trained(model, base)
        evaluation = Evaluation({split: mixture}, processor, collation(processor), max_new_tokens=max_new_tokens)
        run = RunFolder(aside)
        with torch.no_grad():
            figures = evaluation.measure(loaded, World(0, 1, loaded.device, "single"), True, run, limit=samples)
        if not read_predictions(aside):
            example = read_records(aside / "left_out.jsonl")[0]["message"]
            raise BadInput(f"{', '.join(data)}: no sample can be used, such as: {example}")
        values = result("qvl-sft", seed=0, complete=True, figures={"model": model, "data": " ".join(data), **figures})
        run.write_result(values)
        evaluation_report(run, model)
    print(*(f"{name} {value:.4f}" for name, value in figures.items()), RunFolder(out).report_file, sep="\n")
    return dict(values)


def read_predictions(folder: Path) -> list[Prediction]:
    """The predictions an evaluation left in a run folder; empty if there are none."""
    return [Prediction(**record) for record in read_records(folder / "predictions.jsonl")]


def _write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSONL file; without records there is none, also if an earlier try left one."""
    if records:
        write_atomic(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    else:
        file.unlink(missing_ok=True)


def _dealt_back(parts: list[list[Prediction]]) -> list[Prediction]:
    """The processes' predictions in the order of the items, as far as none was left out: one from each in turn."""
    return [prediction for turn in zip_longest(*parts) for prediction in turn if prediction is not None]


def _choose(items: list[Item], samples: int | None) -> list[Item]:
    """A fixed random choice, the same in every run and on every process."""
    if samples is None or samples >= len(items):
        return items
    return [items[order(0, place, len(items))] for place in range(samples)]


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
