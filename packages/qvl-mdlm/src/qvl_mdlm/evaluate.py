"""What a model can do on held-out samples: the bound on their likelihood, answers right letter for letter, choices.

`Evaluation` serves the training loop; `qvl-mdlm evaluate` does the same to any model. Each process measures its share
of a list; the figures are the same on all.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.evaluation import LEFT_OUT, evaluation_folder, write_lines
from qvl_core.predictions import by_list, write_predictions
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.run import RunFolder, Scalar, read_records, result
from qvl_core.training.world import World
from qvl_data.answers import choices_of, references_of
from qvl_data.chat import TrainOn, encode, prompt
from qvl_data.errors import BadSample, placed
from qvl_data.order import chosen
from qvl_data.progress import track
from qvl_data.sample import Part, Sample
from qvl_data.shown import keep_picture
from qvl_data.sources import Item, Mixture, read_sources
from qvl_mdlm.batch import collation
from qvl_mdlm.layout import Shape, shape_of
from qvl_mdlm.likelihood import Bound, bound
from qvl_mdlm.prediction import Prediction, read_predictions
from qvl_mdlm.recipe import METRICS
from qvl_mdlm.sample import Sampling, sample

HELD = 64  # samples that are held, and answered, together
PICTURES = 24  # right and wrong answers of a list whose pictures are kept for the report


@dataclass
class Evaluation:
    """Lists of held-out samples and what is measured on them. Raises BadInput for choices where there are none.

    metrics  of `METRICS`: nelbo, exact_match, and choice_accuracy, of the samples that have the field `choices`
    samples  of each list, before the final evaluation
    draws    masks of each sample
    live     show on the terminal how far it has come, and tell tokens per second, which no two runs have alike
    """

    lists: Mapping[str, Mixture]
    processor: Any
    shape: Shape
    metrics: Sequence[str]
    sampling: Sampling
    train_on: TrainOn = "all"
    samples: int | None = None
    draws: int = 8
    live: bool = False

    def __post_init__(self) -> None:
        for name, mixture in self.lists.items():
            if "choice_accuracy" in self.metrics and not has_choices(mixture):
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
        figures: dict[str, float] = {}
        everything: list[Prediction] = []
        left_out: list[dict[str, str]] = []
        for name, mixture in self.lists.items():
            if not final and name != "validation":
                continue
            items = chosen(list(mixture.items()), limit if final else self.samples)
            parts = world.gather(self._measure(model, name, mixture, items, range(world.rank, len(items), world.size)))
            found = {place: prediction for part in parts for place, prediction in part.found}
            places = sorted(found)  # the order of the items, whoever measured them
            predictions = [found[place] for place in places]
            figures |= figures_of(name, predictions, self.metrics)
            if self.live and "exact_match" in self.metrics:
                seconds = sum(part.seconds for part in parts)
                figures[f"{name}_tokens_per_second"] = sum(p.written for p in predictions) / max(seconds, 1e-9)
            if bad := [entry for part in parts for entry in part.left_out]:
                figures[f"{name}_left_out"] = float(len(bad))
                left_out += bad
            if final and world.rank == 0:
                pictured = _shown(predictions)
                everything += [
                    replace(p, picture=keep_picture(mixture, items[place], run.path, name)) if i in pictured else p
                    for i, (place, p) in enumerate(zip(places, predictions, strict=True))
                ]
        if final and world.rank == 0:
            write_predictions(run.path, everything)
            write_lines(run.path / LEFT_OUT, left_out)
        return figures

    def _measure(
        self, model: Any, name: str, mixture: Mixture, items: Sequence[Item], places: Sequence[int]
    ) -> "_Measured":
        """This process's items, HELD at a time."""
        measured = _Measured()
        starts = range(0, len(places), HELD)
        for start in track(starts, f"{name}, {HELD} samples at a time", len(starts)) if self.live else starts:
            opened: list[_Opened] = []
            for place in places[start : start + HELD]:
                try:
                    opened.append(self._open(mixture.sample(items[place]), place))
                except BadSample as error:
                    where = mixture.place(items[place])
                    entry = {"list": name, "id": where, "reason": error.reason, "message": str(error)}
                    measured.left_out.append(entry)
            if opened:
                predictions = self._predict(model, name, opened, measured)
                measured.found += zip((one.place for one in opened), predictions, strict=True)
        return measured

    def _open(self, sample: Sample, place: int) -> "_Opened":
        whole = encode(sample, self.processor, train_on=self.train_on)
        question, reference = prompt(sample, self.processor)
        with placed(sample):
            references, choices = references_of(sample), choices_of(sample)
        alternatives = []
        if "choice_accuracy" in self.metrics:
            alternatives = [encode(answered(sample, text), self.processor, train_on="last") for text in choices]
        asked = next((message.text for message in reversed(sample.messages) if message.role == "user"), "")
        return _Opened(place, sample.id, asked, whole, question, reference, references, choices, alternatives)

    def _predict(self, model: Any, name: str, opened: "Sequence[_Opened]", measured: "_Measured") -> list[Prediction]:
        of_answers = self._bound(model, [one.whole for one in opened], [one.place for one in opened])
        predictions = [
            Prediction(name, one.id, one.asked, one.reference, float(nats), int(tokens))
            for one, nats, tokens in zip(opened, of_answers.of_samples, of_answers.tokens, strict=True)
        ]
        if "exact_match" in self.metrics:
            began = time.perf_counter()
            questions, places = [one.question for one in opened], [one.place for one in opened]
            written = sample(model, self.processor, questions, self.sampling, keys=places)
            measured.seconds += time.perf_counter() - began
            predictions = [
                replace(p, answer=w.text, correct=one.accepts(w.text), forwards=w.forwards, written=w.tokens)
                for p, w, one in zip(predictions, written, opened, strict=True)
            ]
        return [
            replace(p, chosen=self._choose(model, one)) if one.alternatives else p
            for p, one in zip(predictions, opened, strict=True)
        ]

    def _choose(self, model: Any, one: "_Opened") -> str:
        """The likeliest choice, all under the same masks."""
        nats = self._bound(model, one.alternatives, [one.place] * len(one.alternatives)).of_samples
        return one.choices[int(nats.argmin())]

    def _bound(self, model: Any, wholes: Sequence[Encoded], places: Sequence[int]) -> Bound:
        collate = collation(self.processor, True, patterned=model.config.pattern != "full")
        return bound(model, wholes, self.shape, collate, self.draws, places=places)


@dataclass
class _Measured:
    """What one process found out about its share of a list: by place in the list, and what it could not use."""

    found: list[tuple[int, Prediction]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0  # of writing answers


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

    loss  nats per token, whatever is measured;  nelbo, nelbo_error, perplexity (an upper bound);  exact_match,
    forwards_per_token (mean over answers, the end token included);  choice_accuracy
    """
    if not predictions:
        return {}
    found = Bound(np.array([[p.nats] for p in predictions]), np.array([p.tokens for p in predictions]))
    figures = {"loss": float(found.of_samples.sum() / found.tokens.sum())}
    if "nelbo" in metrics:
        figures |= {"nelbo": found.mean, "nelbo_error": found.error, "perplexity": found.perplexity}
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
    """Places of the first right and the first wrong answers."""
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
    metrics = _metrics(metrics, lists[split])
    with evaluation_folder(out, fresh) as run:
        loaded, processor = open_masked(model, base, unconverted=True)
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


def _metrics(asked: Sequence[str] | None, mixture: Mixture) -> Sequence[str]:
    """What to measure. Raises BadInput for what is not known."""
    if asked is None:
        return [name for name in METRICS if name != "choice_accuracy" or has_choices(mixture)]
    for name in asked:
        if name not in METRICS:
            raise BadInput(f"--metric {name}: choose of {', '.join(METRICS)}.")
    return asked


def _table(figures: Mapping[str, float]) -> Table:
    shown = Table(show_header=False)
    for name, value in figures.items():
        shown.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    return shown
