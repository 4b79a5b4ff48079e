"""Measure a model on held-out samples: the loss by token, and greedy answers against the reference answers.

`Evaluation` serves the training loop; `qvl-sft evaluate` does the same to any model, and judges answers again that are
already there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.evaluation import LEFT_OUT, evaluation_folder
from qvl_core.qwen3vl.batch import by_tokens
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.generate import generate
from qvl_core.qwen3vl.loss import token_losses
from qvl_core.run import RunFolder, read_records
from qvl_core.training.world import World
from qvl_data.answers import references_of
from qvl_data.chat import TrainOn, encode, prompt
from qvl_data.errors import placed
from qvl_data.measuring import Judged, measure
from qvl_data.sample import Sample
from qvl_data.sources import Item, Mixture
from qvl_data.template import Template
from qvl_sft.asking import MAX_NEW_TOKENS, Asking
from qvl_sft.batch import Collate, collation
from qvl_sft.figures import Found, figures_of, scored, worst
from qvl_sft.metrics import METRICS, boxes, tallies
from qvl_sft.prediction import Prediction, read_predictions
from qvl_sft.references import check_lists, fields_of

PICTURES = 24  # first samples of a list whose pictures are kept for the report
WORST = 24  # samples with the lowest scores whose pictures are kept too
TOKENS = 4096  # per forward of the loss
HELD = 128  # samples whose pixels are held at a time


@dataclass(frozen=True)
class Evaluation:
    """What is measured, on which lists of samples ("validation", "test"). Raises BadInput for what has no answer there.

    metrics   names of METRICS; the report sorts answers by the first
    group_by  key of the samples' meta or other fields; figures are then also given for each of its values
    samples   of each list, before the final evaluation
    train_on  answers whose loss is measured, each label counting once; a sample without any is left out
    live      show on the terminal how far it has come; a run has a live line of its own
    """

    lists: Mapping[str, Mixture]
    processor: Any
    collate: Collate
    metrics: Sequence[str] = ("exact_match",)
    max_new_tokens: int = MAX_NEW_TOKENS
    samples: int | None = None
    group_by: str | None = None
    train_on: TrainOn = "all"
    live: bool = False

    def __post_init__(self) -> None:
        check_lists(self.lists, self.metrics, self.group_by)

    def measure(
        self, model: nn.Module, world: World, final: bool, run: RunFolder, limit: int | None = None
    ) -> dict[str, float]:
        """Figures such as validation_loss and test_exact_match, the same on every process.

        Before the end only the validation list is looked at. At the end the run folder gets predictions.jsonl, and in
        answers/ the pictures of the first and of the worst answers; it looks at all samples, or at `limit` of them.
        Samples that cannot be used are left out, counted (validation_left_out) and, at the end, listed in
        left_out.jsonl.
        """
        return self.judge(model, world, final, run, limit)[0]

    def judge(
        self, model: nn.Module, world: World, final: bool, run: RunFolder, limit: int | None = None
    ) -> tuple[dict[str, float], dict[str, Found]]:
        """`measure`, and what the metrics found in the predictions of each list."""
        asked = _Asked(self, model)
        samples = limit if final else self.samples
        figures = measure(asked, self.lists, world, final, run, samples=samples, held=HELD, live=self.live)
        return figures, asked.found


@dataclass
class _Asked:
    """A model that is asked, for `qvl_data.measuring`: the loss and the greedy answer of each sample.

    found  what the metrics found in the predictions of each list
    """

    evaluation: Evaluation
    model: nn.Module
    found: dict[str, Found] = field(default_factory=dict)

    def open(self, mixture: Mixture, item: Item, place: int) -> "_Opened":
        evaluation, sample = self.evaluation, mixture.sample(item)
        whole = encode(sample, evaluation.processor, train_on=evaluation.train_on)
        question, reference = prompt(sample, evaluation.processor, pixels_of=whole)
        with placed(sample):
            references = references_of(sample)
            if any(METRICS[name].needs == "boxes" for name in evaluation.metrics):
                boxes.reference_boxes(reference)
        begun = "<think>\n" if Template.of(evaluation.processor).thinks else ""
        return _Opened(sample, whole, question, reference, references, begun)

    def predict(self, name: str, opened: Sequence["_Opened"]) -> list[Prediction]:
        evaluation, device = self.evaluation, next(self.model.parameters()).device
        losses: list[float] = []
        for samples in by_tokens([one.whole for one in opened], TOKENS):
            nll = token_losses(self.model, evaluation.collate(samples).to(device)).double()  # (N,)
            losses += [float(part.sum()) for part in nll.split([sample.count for sample in samples])]
        answers = [""] * len(opened)
        if evaluation.metrics:
            questions = [one.question for one in opened]
            answers = generate(self.model, evaluation.processor, questions, evaluation.max_new_tokens)
        return [one.answered(name, answer, loss) for one, answer, loss in zip(opened, answers, losses, strict=True)]

    def judge(self, name: str, predictions: Sequence[Prediction], places: Sequence[int]) -> Judged[Prediction]:
        evaluation = self.evaluation
        self.found[name] = found = tallies(predictions, evaluation.metrics)
        judged = scored(predictions, found)
        figures = figures_of(name, judged, found, evaluation.group_by)
        if not evaluation.metrics:  # nothing was answered
            return Judged(figures)
        pictured = {*range(PICTURES), *(places[i] for i in worst(judged, evaluation.metrics[0], WORST))}
        return Judged(figures, judged, pictured)


@dataclass(frozen=True)
class _Opened:
    """A sample with its answer, for the loss, and without, to be answered."""

    sample: Sample
    whole: Encoded
    question: Encoded
    reference: str
    references: tuple[str, ...]
    begun: str  # of the answer, by the template

    def answered(self, name: str, answer: str, loss: float) -> Prediction:
        asked = next((message.text for message in reversed(self.sample.messages) if message.role == "user"), "")
        said = Prediction(
            list=name,
            id=self.sample.id,
            question=asked,
            reference=self.reference,
            answer=self.begun + answer,
            correct=False,
            references=self.references,
            fields=fields_of(self.sample),
            loss=loss,
            labels=self.whole.count,
        )
        return replace(said, correct=said.said in said.accepted)


def evaluate(
    model: str,
    data: Sequence[str],
    out: Path,
    *,
    metrics: Sequence[str] = ("exact_match",),
    group_by: str | None = None,
    asking: Asking = Asking(),  # noqa: B008 (immutable)
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure any model on data files or dataset folders; `out` gets result.json, predictions.jsonl and report.html.

    Without data, the answers that an evaluation left in the folder `model` are judged again, by other metrics or
    groups, and no model is loaded. `fresh` moves an evaluation that is at `out` aside.
    """
    from qvl_sft.judge import judge_again, publish

    if not data and (idle := [*asking.of_models, *asking.of_data]):
        raise BadInput(
            f"{', '.join(idle)}: the answers in {model} are judged as they are; name DATA to answer, or leave it out."
        )
    with evaluation_folder(out, fresh) as run:
        if data:
            found = answer(model, asking.lists(data), run, metrics, asking, group_by)
        else:
            found = judge_again(Path(model), run, metrics, group_by)
        values = publish(run, model, data, found, group_by)
    print(RunFolder(out).report_file)
    return values


def answer(
    model: str,
    lists: Mapping[str, Mixture],
    run: RunFolder,
    metrics: Sequence[str],
    asking: Asking,
    group_by: str | None = None,
) -> dict[str, Found]:
    """Let a model answer; the run folder then has its predictions. What the metrics found in them, by list.

    Raises BadInput if no sample can be used.
    """
    from qvl_sft.trained import load_trained

    check_lists(lists, metrics, group_by)  # before the model is loaded
    loaded, processor = load_trained(model, asking.base, quantization=asking.quantization, spread=asking.spread)
    evaluation = Evaluation(
        lists, processor, collation(processor), metrics, asking.longest, group_by=group_by, live=True
    )
    with torch.no_grad():
        _, found = evaluation.judge(loaded, World(0, 1, loaded.device, "single"), True, run, asking.samples)
    if not read_predictions(run.path):
        example = read_records(run.path / LEFT_OUT)[0]["message"]
        raise BadInput(f"no sample can be used, such as: {example}")
    return found
