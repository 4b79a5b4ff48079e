"""`qvl-sft inspect`: what the model reads and what it learns, token by token, before anything is trained.

    qvl-sft inspect lora_4b data.train=mine.parquet --out runs/look

Samples are those that the run begins with, augmented as it would see them, in the terminal and as DIR/inspect.html.
No weights are read.
"""

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from rich.console import Console

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.qwen3vl.budgets import apply_media
from qvl_core.qwen3vl.load import open_processor
from qvl_core.qwen3vl.panels import panels, picture_sizes
from qvl_data.errors import BadSample
from qvl_data.sources import Item, Mixture, mixtures
from qvl_data.stream import ChatSamples
from qvl_sft.batch import chat_batches, chat_samples
from qvl_sft.inspect_page import Rows, page
from qvl_sft.plan import model_config
from qvl_sft.reading import Reading, read_draw
from qvl_sft.recipe import SFTRecipe
from qvl_vision.processing import processor_for

ROWS = 8  # of the first step that are shown


def inspect(
    recipe: SFTRecipe, name: str, list_name: str = "train", samples: int = 4, sample: str = "", out: Path | None = None
) -> None:
    """Show samples of one of the recipe's lists; `out` gets inspect.html.

    name    what the recipe is called
    sample  show this one alone: its id, or its number in the order that is trained on (validation, test: in the list)
    """
    lists = mixtures(recipe.data)
    if list_name not in lists:
        raise BadInput(f"--list {list_name}: the recipe has no such data; choose from {', '.join(lists)}.")
    stream = chat_samples(recipe, lists[list_name], recipe_processor(recipe))
    trained = list_name == "train"
    items = _draws(recipe, stream) if trained else stream.mixture.items()
    if sample:
        known = len(stream.mixture) if trained else stream.mixture.chosen  # an evaluation takes each once
        chosen = [_find(stream.mixture, sample, items, known, recipe)]
    else:
        chosen = list(islice(items, samples))
    readings = [read_draw(stream, item) for item in chosen]
    console = Console()
    for reading in readings:
        console.print(shown(reading, stream.processor))
    if out is not None:
        rows = _first_rows(recipe, stream) if trained else None
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "inspect.html", page(recipe, name, list_name, readings, rows, stream.processor))
        print(out / "inspect.html")


def recipe_processor(recipe: SFTRecipe) -> Any:
    """The processor that the recipe trains with. No weights are read."""
    processor = open_processor(recipe.model)
    if recipe.model.vision is not None:
        vision = model_config(recipe.model).vision_config
        processor = processor_for(processor, vision, recipe.model.vision.max_tokens)
    apply_media(processor, recipe.media)
    return processor


def shown(reading: Reading, processor: Any) -> Any:
    """A reading for the terminal."""
    title = " · ".join((reading.name or reading.place, *reading.changes))
    sizes = picture_sizes(reading.whole, processor)
    return panels(title, reading.turns, sizes, reading.cut, reading.problem)


def _draws(recipe: SFTRecipe, stream: ChatSamples) -> Iterator[Item]:
    """What the run reads, step by step."""
    batches = chat_batches(recipe, stream)
    for step in count():
        for position in (position for row in batches.rows(step) for position in row):
            yield stream.mixture.locate(stream.seed, position)


def _find(mixture: Mixture, sample: str, items: Iterator[Item], known: int, recipe: SFTRecipe) -> Item:
    """The sample with this id, or number below `known`."""
    if sample.isdecimal() and int(sample) < known:
        return next(islice(items, int(sample), None))
    for item in mixture.items():
        try:
            if mixture.outline(item).id == sample:
                return Item(item.source, item.index, 0, recipe.train.seed)
        except BadSample as error:
            if error.sample_id == sample:
                return item
    raise BadInput(f"--sample {sample}: no sample has this id, and there are {known:,}; give another one.")


def _first_rows(recipe: SFTRecipe, stream: ChatSamples) -> Rows:
    """The rows of the first step's forwards: what is laid end to end, or below one another."""
    batch, rows = recipe.batch, chat_batches(recipe, stream).rows(0)
    if batch.size and batch.packing:  # a forward is one row
        positions, micro = [row[0] for row in rows], batch.micro or batch.size
        rows = [tuple(positions[start : start + micro]) for start in range(0, len(positions), micro)]
    lengths = [[stream.length(position) for position in row] for row in rows]
    together = batch.micro or len(lengths)
    full = (
        batch.max_length
        if batch.tokens
        else max(sum(row) for row in (lengths if batch.packing else lengths[:together]))
    )
    return Rows(tuple(map(tuple, lengths[: ROWS if batch.packing else min(ROWS, together)])), full, len(lengths))
