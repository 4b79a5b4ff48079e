"""`qvl-metaquery check`: is this recipe what you meant? Reads the data, shows the first batch and what will be trained.

Nothing is trained and no weights are read but those of an earlier stage: the rest comes from shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from qvl_core.qwen3vl.budgets import apply_media
from qvl_core.qwen3vl.load import open_processor
from qvl_core.qwen3vl.lora import TuneTable, apply_tune
from qvl_core.qwen3vl.panels import panels, picture_sizes
from qvl_core.qwen3vl.transcript import read
from qvl_core.recipe.doubts import unsaved, unwarmed
from qvl_core.training.batches import SampleBatches
from qvl_core.training.samples import Bad
from qvl_data.checking import conclude, first_samples, leaks, read_list, show_lists
from qvl_data.drawing.calls import pictures
from qvl_data.errors import BadSample
from qvl_data.shown import png
from qvl_data.sources import Item, mixtures
from qvl_metaquery.batch import Drawing, DrawingSamples, collation, witness
from qvl_metaquery.build import check_tune, drawing_samples
from qvl_metaquery.model import GROUPS
from qvl_metaquery.recipe import MetaQueryRecipe
from qvl_metaquery.released import latent_shape, shapes
from qvl_metaquery.stage import check_stage, settled, stage_of, stage_report
from qvl_metaquery.wanted import wanted
from qvl_metaquery.weights import own_weights, trained_transformer

SLOW = 1e9  # parameters; smaller models bear higher rates
HIGH = 3e-4  # a rate that is high for larger ones


@dataclass
class Content:
    """What was met in a list: samples that can be used, those of them that show pictures, and those whose text is cut,
    or whose picture is smaller than what is learned."""

    samples: int = 0
    shown: int = 0
    cut: int = 0
    small: int = 0


def check(recipe: MetaQueryRecipe, out: Path | None = None) -> None:
    """Print data facts, the first batch, the tune table and warnings; `out` gets them as check.html, with the pictures
    of the first batch and the bad samples.

    Raises BadInput for what cannot be meant, and if the data holds more bad samples than data.max_bad allows.
    """
    console, recipe = Console(record=True), settled(recipe)
    lists = mixtures(recipe.data)
    processor = open_processor(recipe.model)
    apply_media(processor, recipe.media)
    stage = stage_of(recipe)
    if stage is not None:
        check_stage(stage, recipe.settings)
    check_tune(recipe, stage)
    model, coder = shapes(recipe)
    table = apply_tune(model, recipe.tune, seed=0, optim=recipe.optim, groups=GROUPS)
    shape = latent_shape(model, coder, recipe.flow.size)
    streams = {name: drawing_samples(recipe, mixture, processor, shape) for name, mixture in lists.items()}
    met = Content()

    def meet(item: Item, bad: Bad | None) -> None:
        if bad is None:
            _meet(streams["train"], item, met)

    facts = {
        name: read_list(lists[name], stream.encode_item, meet if name == "train" else None)
        for name, stream in streams.items()
    }
    show_lists(facts, console)

    samples = streams["train"]
    batches = SampleBatches(
        samples, recipe.batch, recipe.train.seed, collation(processor, coded=False), witness(samples)
    )
    console.print(f"first batch (seed {recipe.train.seed}), as it is learned from:", style="bold")
    shown = list(first_samples(samples.encode, batches.rows(0)))
    for sample in shown:
        console.print(panels(sample.id, read(sample, processor.tokenizer), picture_sizes(sample, processor)))
        console.print(f"to be drawn: {recipe.flow.size} x {recipe.flow.size} pixels; noise {sample.level:.2f} of 1")
    if stage is not None:
        console.print(stage_report(stage, recipe.settings, own_weights(stage), trained_transformer(stage) is not None))
    console.print(table.rich())
    console.print(f"{batches.steps_of(recipe.train)} steps; one epoch is {len(samples):,} pictures")
    notes = (*warnings(recipe, table), *about_data(recipe, met), *leaks(lists))
    drawn = {f"first-{number}.png": _png(sample) for number, sample in enumerate(shown)}
    conclude(console, notes, facts, recipe.data.max_bad, out, drawn)


def warnings(recipe: MetaQueryRecipe, table: TuneTable) -> Iterator[str]:
    """One sentence for each doubt about a recipe."""
    for row in table.rows:
        if row.trainable > SLOW and row.lr is not None and row.lr > HIGH:
            size = f"{row.trainable / 1e9:.1f}B"
            yield f"tune.{row.group}: {row.lr:g} is high for {size} parameters; 5e-5 to 1e-4 is usual."
    if recipe.flow.dropout == 0 and recipe.sampling.guidance > 1:
        yield "flow.dropout is 0: guidance compares with an empty prompt, which is then never learned; 0.1 is usual."
    yield from unwarmed(recipe)
    yield from unsaved(recipe)


def about_data(recipe: MetaQueryRecipe, met: Content) -> Iterator[str]:
    """The same of a recipe and its training data."""
    if recipe.flow.task == "t2i" and met.shown:
        yield (
            f"flow.task is t2i, and {met.shown:,} of {met.samples:,} samples show pictures: these are never left out, "
            "so image guidance has nothing to compare with; use edit or instruct."
        )
    if recipe.flow.task in ("edit", "instruct") and met.samples and not met.shown:
        yield f"flow.task is {recipe.flow.task}, and no sample shows a picture: they are learned as t2i is."
    if met.cut:
        yield f"{met.cut:,} of {met.samples:,} texts are longer than queries.caption_tokens and are cut."
    if met.small:
        size = recipe.flow.size
        yield f"{met.small:,} of {met.samples:,} pictures are smaller than flow.size {size} and are enlarged."


def _meet(samples: DrawingSamples, item: Item, met: Content) -> None:
    try:
        asked = wanted(samples.mixture.sample(item), samples.task)
        size = asked.picture().size
    except BadSample:
        return  # its encoding tells
    text = samples.processor.tokenizer(asked.prompt.text, add_special_tokens=False)["input_ids"]
    met.samples += 1
    met.shown += bool(asked.prompt.pictures)
    met.cut += len(text) > samples.layout.caption_tokens
    met.small += min(size) < samples.size


def _png(sample: Drawing) -> bytes:
    """The picture that is to be drawn."""
    return png(pictures(sample.picture[None])[0])
