"""`qvl-sft check`: is this recipe what you meant? Reads the data, shows the first batch and what will be trained.

Nothing is trained and no weights are read: the tune table comes from the model's shapes.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.qwen3vl.compiling import check_compiler
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.lora import TuneTable, apply_tune
from qvl_core.qwen3vl.presets import meta_model
from qvl_core.qwen3vl.quantize import check_library
from qvl_core.qwen3vl.transcript import read
from qvl_core.training.samples import Bad, LeftOut
from qvl_data.chat import answer_weights
from qvl_data.errors import BadSample
from qvl_data.order import order
from qvl_data.sources import Item, Mixture, mixtures, shared
from qvl_data.stream import ChatSamples
from qvl_data.template import Template
from qvl_sft.batch import chat_batches, chat_samples
from qvl_sft.inspect import recipe_processor
from qvl_sft.inspect_page import picture_sizes
from qvl_sft.known_good import Content, about_data, warnings
from qvl_sft.panels import panels
from qvl_sft.plan import model_config
from qvl_sft.recipe import SFTRecipe, check_mergers_learn
from qvl_sft.references import check_lists, check_stop
from qvl_vision.config import has_new_merger

ENCODED = 2000  # samples of a list that are encoded in full, pictures and all: a fixed random choice of a longer list
SHOWN = 2  # samples of the first batch that are printed


@dataclass
class ListFacts:
    """What was found in one list of sources."""

    samples: int
    lengths: list[int] = field(default_factory=list)
    labels: int = 0
    bad: list[Bad] = field(default_factory=list)
    met: Content = field(default_factory=Content)


def check(recipe: SFTRecipe, out: Path | None = None) -> None:
    """Print data facts, the first batch, the tune table and warnings; `out` gets them as check.html, and bad samples.

    Raises BadInput if the data holds more bad samples than data.max_bad allows.
    """
    console = Console(record=True)
    if recipe.model.quantization is not None:
        check_library(recipe.model.quantization)
    if recipe.speed.compile:
        check_compiler("cuda" if torch.cuda.is_available() else "cpu")
    lists = mixtures(recipe.data)
    measured = {name: mixture for name, mixture in lists.items() if name != "train"}
    check_lists(measured, recipe.evaluate.metrics, recipe.evaluate.group_by)
    check_stop(recipe.evaluate, measured)
    config, processor = model_config(recipe.model), recipe_processor(recipe)
    facts = {name: _read(mixture, processor, recipe) for name, mixture in lists.items()}
    console.print(_data_table(facts))
    for name, found in facts.items():
        for reason, count in Counter(entry.reason for entry in found.bad).items():
            example = next(entry.message for entry in found.bad if entry.reason == reason)
            console.print(f"{name}: {count} x {reason}, such as: {example}", style="red", markup=False)

    samples = chat_samples(recipe, lists["train"], processor)
    batches = chat_batches(recipe, samples)
    console.print(f"first batch (seed {recipe.train.seed}); what is learned from is green:", style="bold")
    for sample in _first(samples, batches.rows(0)):
        sizes = picture_sizes(sample, processor)
        console.print(panels(sample.id, read(sample, processor.tokenizer), sizes))
    table: TuneTable = apply_tune(
        meta_model(config), recipe.tune, seed=0, optim=recipe.optim, quantization=recipe.model.quantization
    )
    console.print(table.rich())
    console.print(f"{batches.steps_of(recipe.train)} steps; one epoch is {len(lists['train']):,} samples")
    new = recipe.model.vision is None and has_new_merger(config)
    if new and recipe.model.init_from is None:
        check_mergers_learn(recipe, config)
    doubts = about_data(recipe, facts["train"].met, Template.of(processor).thinks)
    for sentence in (*warnings(recipe, table.parameters, new), *doubts, *_leaks(lists)):
        console.print(f"note: {sentence}", style="yellow", markup=False)
    if out is not None:
        _write_bad(facts, out)
        write_atomic(out / "check.html", console.export_html())
    _judge(facts, recipe)


def _leaks(lists: dict[str, Mixture]) -> list[str]:
    return [
        f"{leak}; what is learned would be measured: name disjoint parts ([train:N,test:M])" for leak in shared(lists)
    ]


def _read(mixture: Mixture, processor: Any, recipe: SFTRecipe) -> ListFacts:
    items = list(mixture.items())
    chosen = items if len(items) <= ENCODED else [items[order(0, place, len(items))] for place in range(ENCODED)]
    samples = chat_samples(recipe, mixture, processor)
    facts = ListFacts(len(mixture))
    for item in chosen:
        _meet(mixture, item, recipe, facts.met)
        try:
            encoded = samples.encode_item(item)
            facts.lengths.append(len(encoded))
            facts.labels += encoded.count
        except LeftOut as error:
            facts.bad.append(error.bad)
            facts.met.unmarked += error.bad.reason == "nothing_to_learn"
    return facts


def _meet(mixture: Mixture, item: Item, recipe: SFTRecipe, met: Content) -> None:
    """Count what a sample's messages hold."""
    try:
        messages = mixture.outline(item).messages
        weights = answer_weights(messages, recipe.data.train_on)
    except BadSample:
        return  # its encoding tells
    reasons = ["</think>" in message.text and message.role == "assistant" for message in messages]
    asked = max((place for place, message in enumerate(messages) if message.role == "user"), default=0)
    earlier = zip(reasons[:asked], weights[:asked], strict=True)
    met.samples += 1
    met.reasoned += any(reasons)
    met.lost += any(reason and weight > 0 for reason, weight in earlier)
    met.videos += any(part.type == "video" for message in messages for part in message.parts)


def _data_table(facts: dict[str, ListFacts]) -> Table:
    table = Table(title="data")
    table.add_column("list")
    for title in ("samples/epoch", "read", "bad", "tokens: median", "p95", "longest", "labels"):
        table.add_column(title, justify="right")
    for name, found in facts.items():
        lengths = np.array(found.lengths or [0])
        numbers = (np.median(lengths), np.percentile(lengths, 95), lengths.max())
        table.add_row(
            name,
            f"{found.samples:,}",
            f"{len(found.lengths) + len(found.bad):,}",
            f"{len(found.bad):,}",
            *(f"{number:,.0f}" for number in numbers),
            f"{found.labels / max(1, lengths.sum()):.1%}",
        )
    return table


def _first(samples: ChatSamples, rows: list[tuple[int, ...]]) -> Iterator[Encoded]:
    shown = 0
    for position in (position for row in rows for position in row):
        try:
            yield samples.encode(position)
        except LeftOut:
            continue
        shown += 1
        if shown == SHOWN:
            return


def _write_bad(facts: dict[str, ListFacts], out: Path) -> None:
    entries = [{"list": name, **asdict(bad)} for name, found in facts.items() for bad in found.bad]
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_atomic(out / "bad_samples.jsonl", "".join(lines))


def _judge(facts: dict[str, ListFacts], recipe: SFTRecipe) -> None:
    grave = [entry for found in facts.values() for entry in found.bad if not entry.tolerated]
    if len(grave) > recipe.data.max_bad:
        raise BadInput(
            f"{len(grave)} bad samples, data.max_bad allows {recipe.data.max_bad}; mend or remove them "
            "(--out DIR lists all), or raise data.max_bad."
        )
