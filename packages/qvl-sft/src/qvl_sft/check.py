"""`qvl-sft check`: is this recipe what you meant? Reads the data, shows the first batch and what will be trained.

Nothing is trained and no weights are read: the tune table comes from the model's shapes.
"""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from qvl_core.qwen3vl.compiling import check_compiler
from qvl_core.qwen3vl.lora import TuneTable, apply_tune
from qvl_core.qwen3vl.panels import panels, picture_sizes
from qvl_core.qwen3vl.presets import meta_model
from qvl_core.qwen3vl.quantize import check_library
from qvl_core.qwen3vl.transcript import read
from qvl_core.training.samples import Bad
from qvl_data.chat import answer_weights
from qvl_data.checking import ListFacts, conclude, first_samples, leaks, read_list, show_lists
from qvl_data.errors import BadSample
from qvl_data.sources import Item, Mixture, mixtures
from qvl_data.template import Template
from qvl_sft.batch import chat_batches, chat_samples
from qvl_sft.inspect import recipe_processor
from qvl_sft.known_good import Content, about_data, warnings
from qvl_sft.plan import model_config
from qvl_sft.recipe import SFTRecipe, check_mergers_learn
from qvl_sft.references import check_lists, check_stop
from qvl_vision.config import has_new_merger


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
    met = {name: Content() for name in lists}
    facts = {name: _read(mixture, processor, recipe, met[name]) for name, mixture in lists.items()}
    show_lists(facts, console)

    samples = chat_samples(recipe, lists["train"], processor)
    batches = chat_batches(recipe, samples)
    console.print(f"first batch (seed {recipe.train.seed}); what is learned from is green:", style="bold")
    for sample in first_samples(samples.encode, batches.rows(0)):
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
    doubts = about_data(recipe, met["train"], Template.of(processor).thinks)
    notes = (*warnings(recipe, table.parameters, new), *doubts, *leaks(lists))
    conclude(console, notes, facts, recipe.data.max_bad, out)


def _read(mixture: Mixture, processor: Any, recipe: SFTRecipe, met: Content) -> ListFacts:
    def meet(item: Item, bad: Bad | None) -> None:
        _meet(mixture, item, recipe, met)
        met.unmarked += bad is not None and bad.reason == "nothing_to_learn"

    return read_list(mixture, chat_samples(recipe, mixture, processor).encode_item, meet)


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
