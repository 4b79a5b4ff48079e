"""What a model can do on held-out samples: the bound on their likelihood, answers right letter for letter, choices.

`Evaluation` serves the training loop; `qvl-mdlm evaluate` does the same to any model. Each process measures its share
of a list; the figures are the same on all.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.evaluation import LEFT_OUT, evaluation_folder
from qvl_core.predictions import by_list
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.seen import Seen, look
from qvl_core.run import RunFolder, Scalar, read_records, result
from qvl_core.training.world import World
from qvl_data.answers import choices_of, references_of
from qvl_data.chat import TrainOn, encode, prompt
from qvl_data.errors import BadSample, placed
from qvl_data.measuring import Judged, measure
from qvl_data.sample import Part, Sample
from qvl_data.sources import Item, Mixture, read_sources
from qvl_mdlm.batch import collation
from qvl_mdlm.layout import Shape, shape_of
from qvl_mdlm.likelihood import Bound, bound
from qvl_mdlm.model import tells_apart
from qvl_mdlm.prediction import Prediction, read_predictions
from qvl_mdlm.recipe import METRICS
from qvl_mdlm.sample import Written, sample
from qvl_mdlm.sampling import Sampling, check_sampling

HELD = 64  # samples that are held, and answered, together
PICTURES = 24  # right and wrong answers of a list whose pictures are kept for the report


@dataclass(frozen=True)
class Evaluation:
    """Lists of held-out samples and what is measured on them. Raises BadInput for choices where there are none.

    metrics  of `METRICS`: nelbo, exact_match, and choice_accuracy, of the samples that have the field `choices`;
             default: all, choice_accuracy if there is any such sample among those that are measured
    samples  of each list, before the final evaluation
    draws    masks of each sample
    live     show on the terminal how far it has come, and tell tokens per second, which no two runs have alike
    """

    lists: Mapping[str, Mixture]
    processor: Any
    shape: Shape
    metrics: Sequence[str] | None
    sampling: Sampling
    train_on: TrainOn = "all"
    samples: int | None = None
    draws: int = 8
    live: bool = False

    def __post_init__(self) -> None:
        for name, mixture in self.lists.items():
            if "choice_accuracy" in (self.metrics or ()) and not has_choices(mixture):
                raise BadInput(
                    f"metric choice_accuracy: no sample of {name} has the field `choices`; add a list of texts with "
                    "the answer among them, or leave the metric out."
                )

    def measure(
        self, model: nn.Module, world: World, final: bool, run: RunFolder, limit: int | None = None
    ) -> dict[str, float]:
        """Figures such as validation_exact_match and test_nelbo, the same on every process.

        Before the end only the validation list is looked at. At the end the run folder gets predictions.jsonl, and in
        answers/ pictures of right and of wrong answers; it looks at all samples, or at `limit` of them. Samples that
        cannot be used are left out, counted (validation_left_out) and, at the end, listed in left_out.jsonl.
        """
        asked, samples = _Asked(self, model, world), limit if final else self.samples
        return measure(asked, self.lists, world, final, run, samples=samples, held=HELD, live=self.live)

    def asks(self, metric: str) -> bool:
        return self.metrics is None or metric in self.metrics


@dataclass
class _Asked:
    """A model that is asked, for `qvl_data.measuring`; each picture is opened, and goes through its tower, once."""

    evaluation: Evaluation
    model: Any
    world: World
    seconds: float = 0.0  # of writing answers

    def open(self, mixture: Mixture, item: Item, place: int) -> "_Opened":
        evaluation, sample = self.evaluation, mixture.sample(item)
        processor = evaluation.processor
        whole = encode(sample, processor, train_on=evaluation.train_on)
        question, reference = prompt(sample, processor, pixels_of=whole)
        with placed(sample):
            references, choices = references_of(sample), choices_of(sample)
            if not evaluation.asks("choice_accuracy"):
                choices = ()
            alternatives = [
                encode(answered(sample, text), processor, train_on="last", pixels_of=whole) for text in choices
            ]
            self._check_room(question, [whole, *alternatives])
        asked = next((message.text for message in reversed(sample.messages) if message.role == "user"), "")
        return _Opened(place, sample.id, asked, whole, question, reference, references, choices, alternatives)

    def predict(self, name: str, opened: Sequence["_Opened"]) -> list[Prediction]:
        seen = look(self.model, [one.whole for one in opened])
        found = self._bound([one.whole for one in opened], [one.place for one in opened], seen)
        predictions = [
            Prediction(name, one.id, one.asked, one.reference, float(nats), int(tokens), int(answers))
            for one, nats, tokens, answers in zip(opened, found.of_samples, found.tokens, found.answers, strict=True)
        ]
        if self.evaluation.asks("exact_match"):
            predictions = [
                replace(p, answer=w.text, correct=one.accepts(w.text), forwards=w.forwards, written=w.tokens)
                for p, w, one in zip(predictions, self._write(opened, seen), opened, strict=True)
            ]
        chosen = self._choose(opened, seen)
        return [replace(p, chosen=choice) for p, choice in zip(predictions, chosen, strict=True)]

    def judge(self, name: str, predictions: Sequence[Prediction], places: Sequence[int]) -> Judged[Prediction]:
        evaluation = self.evaluation
        figures = figures_of(name, predictions, METRICS if evaluation.metrics is None else evaluation.metrics)
        if evaluation.live and evaluation.asks("exact_match"):
            seconds = sum(self.world.gather(self.seconds))
            figures[f"{name}_tokens_per_second"] = sum(p.written for p in predictions) / max(seconds, 1e-9)
            self.seconds = 0.0
        return Judged(figures, predictions, {places[number] for number in _shown(predictions)})

    def _check_room(self, question: Encoded, wholes: Sequence[Encoded]) -> None:
        """Raise BadSample if a canvas would reach beyond the model's last position."""
        evaluation, limit = self.evaluation, self.model.config.text_config.max_position_embeddings
        tokens = max(int(evaluation.shape.lay_out(whole).positions[0].max()) + 1 for whole in wholes)
        if evaluation.asks("exact_match"):
            tokens = max(tokens, len(question) + evaluation.sampling.max_new_tokens)
        if tokens > limit:
            problem = f"sample {question.id}: {tokens} tokens with its canvas is over the model's {limit}"
            raise BadSample("too_long", f"{problem}; lower max_new_tokens, or remove it")

    def _write(self, opened: Sequence["_Opened"], seen: Sequence[Seen]) -> list[Written]:
        evaluation, began = self.evaluation, time.perf_counter()
        questions, places = [one.question for one in opened], [one.place for one in opened]
        written = sample(self.model, evaluation.processor, questions, evaluation.sampling, keys=places, seen=seen)
        self.seconds += time.perf_counter() - began
        return written

    def _choose(self, opened: Sequence["_Opened"], seen: Sequence[Seen]) -> list[str | None]:
        """The likeliest choice of each sample, all of one sample under the same masks; None of one without choices."""
        rows = [row for row, one in enumerate(opened) for _ in one.alternatives]
        wholes = [whole for one in opened for whole in one.alternatives]
        if not wholes:
            return [None] * len(opened)
        nats = iter(self._bound(wholes, [opened[row].place for row in rows], [seen[row] for row in rows]).of_samples)
        each = [list(islice(nats, len(one.alternatives))) for one in opened]
        return [one.choices[int(np.argmin(own))] if own else None for one, own in zip(opened, each, strict=True)]

    def _bound(self, wholes: Sequence[Encoded], places: Sequence[int], seen: Sequence[Seen]) -> Bound:
        evaluation = self.evaluation
        patterned = self.model.config.pattern != "full"
        collate = collation(evaluation.processor, packing=tells_apart(self.model), patterned=patterned)
        return bound(self.model, wholes, evaluation.shape, collate, evaluation.draws, places=places, seen=seen)


@dataclass(frozen=True)
class _Opened:
    """A sample with its answers, for the likelihood, without the last, to be answered, and with each choice."""

    place: int
    id: str
    asked: str
    whole: Encoded
    question: Encoded
    reference: str
    references: tuple[str, ...]
    choices: tuple[str, ...]
    alternatives: Sequence[Encoded]

    def accepts(self, text: str) -> bool:
        return text.strip() in {one.strip() for one in (self.reference, *self.references)}


def answered(sample: Sample, text: str) -> Sample:
    """The conversation up to its last answer, with another text there."""
    last = max(number for number, message in enumerate(sample.messages) if message.role == "assistant")
    said = {"parts": (Part(type="text", text=text),), "train": None, "weight": None}
    return sample.model_copy(
        update={"messages": (*sample.messages[:last], sample.messages[last].model_copy(update=said))}
    )


def figures_of(name: str, predictions: Sequence[Prediction], metrics: Sequence[str]) -> dict[str, float]:
    """Flat figures of the list `name`; none without predictions.

    loss  nats per token of the canvas, whatever is measured;  nelbo, nelbo_error (none of a single sample);
    answer_perplexity and canvas_perplexity, upper bounds per token;  exact_match, forwards_per_token (mean over
    answers, the end token included);  choice_accuracy
    """
    if not predictions:
        return {}
    nats, tokens, answers = (
        np.array(column) for column in zip(*((p.nats, p.tokens, p.answer_tokens) for p in predictions), strict=True)
    )
    found = Bound(nats[:, None], tokens, answers)
    figures = {"loss": float(nats.sum() / tokens.sum())}
    if "nelbo" in metrics:
        figures["nelbo"] = found.mean
        if found.error is not None:
            figures["nelbo_error"] = found.error
        figures |= {"answer_perplexity": found.answer_perplexity, "canvas_perplexity": found.canvas_perplexity}
    if "exact_match" in metrics:
        figures["exact_match"] = sum(p.correct for p in predictions) / len(predictions)
        figures["forwards_per_token"] = sum(p.forwards / p.written for p in predictions) / len(predictions)
    if asked := [p.chosen_right for p in predictions if p.chosen is not None]:
        figures["choice_accuracy"] = sum(asked) / len(asked)
    return {f"{name}_{figure}": value for figure, value in figures.items()}


def has_choices(mixture: Mixture) -> bool:
    """Whether any sample has the field `choices`; no picture is opened."""
    for item in mixture.items():
        try:
            if choices_of(mixture.outline(item)):
                return True
        except BadSample:
            continue
    return False


def _shown(predictions: Sequence[Prediction]) -> set[int]:
    """Numbers of the first right and the first wrong answers."""
    right = [place for place, p in enumerate(predictions) if p.correct]
    wrong = [place for place, p in enumerate(predictions) if not p.correct]
    return {*right[:PICTURES], *wrong[:PICTURES]}


def evaluate(
    model: str,
    data: Sequence[str],
    out: Path,
    *,
    metrics: Sequence[str] | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    split: str = "test",
    samples: int | None = None,
    draws: int = 16,
    base: str | None = None,
    media_root: Path | None = None,
    allow_root: Sequence[Path] = (),
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure any model on data files or dataset folders; `out` gets result.json, predictions.jsonl and report.html.

    metrics  default: all, choice_accuracy where samples have choices
    fresh    move an evaluation that is at `out` aside

    An autoregressive model is measured as it is, attending both ways. Raises BadInput, also if no sample can be used.
    """
    from qvl_mdlm.opening import open_masked
    from qvl_mdlm.report import evaluation_report

    lists = {split: Mixture(read_sources(*data), split, media_root, allow_root)}
    _check_metrics(metrics or ())
    with evaluation_folder(out, fresh) as run:
        loaded, processor = open_masked(model, base, unconverted=True)
        check_sampling(loaded.config, sampling, ())  # before anything is measured
        shape = shape_of(loaded.config, processor.tokenizer, loaded.config.pad_to)
        evaluation = Evaluation(lists, processor, shape, metrics, sampling, draws=draws, live=True)
        figures = evaluation.measure(loaded, World(0, 1, loaded.device, "single"), True, run, samples)
        predictions = by_list(read_predictions(run.path))
        if not predictions:
            raise BadInput(f"no sample can be used, such as: {read_records(run.path / LEFT_OUT)[0]['message']}")
        counts = {f"{name}_samples": len(found) for name, found in predictions.items()}
        said: dict[str, Scalar] = {"model": model, "data": " ".join(data), **counts, **figures}
        values = result("qvl-mdlm", seed=sampling.seed, complete=True, figures=said)
        run.write_result(values)
        evaluation_report(run, model)
    Console().print(_table(counts | figures))
    print(RunFolder(out).report_file)
    return dict(values)


def _check_metrics(asked: Sequence[str]) -> None:
    """Raise BadInput for what is not known."""
    for name in asked:
        if name not in METRICS:
            raise BadInput(f"--metric {name}: choose of {', '.join(METRICS)}.")


def _table(figures: Mapping[str, float]) -> Table:
    shown = Table(show_header=False)
    for name, value in figures.items():
        shown.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    return shown
