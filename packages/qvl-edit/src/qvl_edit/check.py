"""`qvl-edit check`: is this recipe what you meant? Reads the data, shows the first slots and what will be trained.

Nothing is trained and no weights are read: shapes are enough, and those of Qwen's own checkpoints are known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.panel import Panel
from rich.text import Text as Line

from qvl_core.printable import printable
from qvl_core.qwen3vl.lora import TuneTable, apply_tune
from qvl_core.recipe.doubts import unsaved, unwarmed
from qvl_core.training.samples import LeftOut
from qvl_data.checking import conclude, leaks, read_list, show_lists
from qvl_data.errors import BadSample
from qvl_data.shown import png
from qvl_data.sources import Item, mixtures
from qvl_data.sources import Mixture as Samples
from qvl_edit.at_hand import AtHand
from qvl_edit.build import check as check_data
from qvl_edit.build import pace, shares
from qvl_edit.cut import Bucket
from qvl_edit.groups import groups
from qvl_edit.looking import Looking
from qvl_edit.mixture import Mixture
from qvl_edit.opening import sized
from qvl_edit.packing import Grid
from qvl_edit.questions import Asking
from qvl_edit.recipe import EditRecipe
from qvl_edit.released import Configs, configs, transformer_shapes
from qvl_edit.sampling import Sampling
from qvl_edit.slots import Corruption, EditBatches, InSlot, Reading, said
from qvl_edit.streaming import waiting_blocks
from qvl_edit.tasks import expanded, tasks_of

SHOWN = 4  # slots of the first step
LARGE = 1e9  # parameters; smaller models bear higher rates
HIGH = 1e-4  # a rate that is high for all weights of a larger one


@dataclass(frozen=True)
class Tokens:
    """Of a sample's pictures; those of its target are learned."""

    whole: int
    count: int

    def __len__(self) -> int:
        return self.whole

    @classmethod
    def of(cls, bucket: Bucket, grid: Grid) -> "Tokens":
        return cls(sum(map(grid.tokens, bucket.sizes)), grid.tokens(bucket.target))


def check(recipe: EditRecipe, out: Path | None = None) -> None:
    """Print data facts, the first slots, the tune table and warnings; `out` gets them as check.html, with the pictures
    of the first slots and the bad samples.

    Raises BadInput for what cannot be meant, and if the data holds more bad samples than data.max_bad allows.
    """
    console = Console(record=True)
    lists = mixtures(expanded(recipe.data))
    tasks = tasks_of(lists["train"])
    assert recipe.batch.size is not None
    weights = recipe.mixture
    mixture = Mixture(tasks.sources, recipe.batch.size, recipe.train.seed, weights.tasks, weights.sources)
    made = configs(recipe.model)
    check_data(recipe, lists["train"], mixture, made.profile)
    geometry = sized(recipe.pictures, made.profile, made.grid, made.seen)
    looking = Looking({}, Asking(weights.inverse, weights.sources), made.profile, geometry)
    facts = {
        name: read_list(one, partial(_tokens, one, name == "train", looking, made.grid)) for name, one in lists.items()
    }
    show_lists(facts, console)

    stored = AtHand.of(recipe, lists, made, geometry)
    corruption = Corruption(made.channels, made.grid, made.shift, recipe.flow.times)
    reading = Reading(stored.told or _nothing, 0, geometry, corruption, weights.inverse)
    batches = EditBatches(tasks, mixture, reading, weights.dropout, recipe.batch.micro)
    console.print(f"first step (seed {recipe.train.seed}), as it is learned from:", style="bold")
    shown = list(_first(batches))
    for wanted in shown:
        console.print(_panel(batches, wanted, stored))
    table = _tuned(recipe, made)
    console.print(table.rich(), shares(mixture, tasks), pace(mixture, batches.steps_of(recipe.train)), sep="\n")
    notes = (*warnings(recipe, table, made.profile.guidance), *stored.unwritten(), *leaks(lists))
    pictures = {f"first-{wanted.slot}.png": png(_side_by_side(batches, wanted)) for wanted in shown} if out else {}
    conclude(console, notes, facts, recipe.data.max_bad, out, pictures)


def warnings(recipe: EditRecipe, table: TuneTable, guidance: float) -> Iterator[str]:
    """One sentence for each doubt about a recipe; guidance: the checkpoint's, if the recipe says none."""
    for row in table.rows:
        full = row.mode == "full" and row.trainable > LARGE
        if full and row.lr is not None and row.lr > HIGH:
            yield f"tune.{row.group}: {row.lr:g} is high for {row.trainable / 1e9:.1f}B parameters; 2e-5 is usual."
    if recipe.mixture.dropout == 0 and Sampling.of(recipe.sampling, guidance).guided:
        yield "mixture.dropout is 0: guidance compares with an empty text, which is then never learned; 0.05 is usual."
    yield from unwarmed(recipe)
    yield from unsaved(recipe)


def _tokens(samples: Samples, train: bool, looking: Looking, grid: Grid, item: Item) -> Tokens:
    """What is learned of a sample, whose pictures are opened. Raises LeftOut."""
    try:
        return Tokens.of(looking.learned(samples.sample(item), train)[1], grid)
    except BadSample as error:
        raise LeftOut(samples.bad(item, error)) from None


def _nothing(*_: Any) -> tuple[torch.Tensor, ...]:
    raise AssertionError("no sample is read in full")


def _first(batches: EditBatches) -> Iterator[InSlot]:
    """The first slots of the first step that can be used."""
    shown = 0
    for slot, draw in enumerate(batches.mixture.draw(0)):
        try:
            wanted = batches.wanted(0, slot, draw)
            batches.pictures(wanted)
        except BadSample:
            continue
        yield wanted
        shown += 1
        if shown == SHOWN:
            return


def _panel(batches: EditBatches, wanted: InSlot, stored: AtHand) -> Panel:
    """A slot: its text, its pictures by size, its noise, and what is stored of it."""
    sample, text = batches.sample(wanted.draw), wanted.choice.text
    words = "left out" if wanted.choice.left_out else said(sample, wanted.choice)
    line = Line()
    line.append(f"{printable(words)}\n", style="dim" if wanted.choice.left_out else "bold green")
    sizes = [f"{width} x {height}" for height, width in wanted.bucket.sizes]
    line.append(f"from {', '.join(sizes[1:])} pixels " if sizes[1:] else "from noise alone ", style="cyan")
    line.append(f"to {sizes[0]}, ", style="cyan")
    tokens = Tokens.of(wanted.bucket, batches.reading.corruption.grid)
    line.append(f"{len(tokens):,} tokens, {tokens.count:,} learned; noise {batches.level(0, wanted):.2f} of 1")
    for held in stored.of_slot(sample, wanted):
        line.append(f"\n{printable(held)}", style="dim")
    way = ", the way back" if text.inverse else ""
    return Panel(
        line,
        title=Line(f"slot {wanted.slot} · {wanted.draw.task} · {sample.id}"),
        subtitle=Line(f"{text.language}{way}", style="dim"),
        title_align="left",
        subtitle_align="right",
    )


def _side_by_side(batches: EditBatches, wanted: InSlot) -> Image.Image:
    """Sources and target of a slot at the sizes at which they are learned."""
    target, *sources = batches.pictures(wanted)
    shown = [*sources, target]
    strip = Image.new("RGB", (sum(one.width for one in shown), max(one.height for one in shown)), "white")
    left = 0
    for one in shown:
        strip.paste(one, (left, 0))
        left += one.width
    return strip


def _tuned(recipe: EditRecipe, made: Configs) -> TuneTable:
    """The table of what is trained, from shapes alone. Raises BadInput for blocks that cannot wait."""
    transformer = transformer_shapes(made)
    patterns = groups(recipe.tune, len(transformer.transformer_blocks))
    table = apply_tune(transformer, recipe.tune, recipe.train.seed, recipe.optim, patterns)
    waiting_blocks(transformer, recipe.speed.offload_blocks)
    return table
