"""`qvl-mdlm check`: is this recipe what you meant? Reads the data, shows the first batch and what will be trained.

Nothing is trained and no weights are read: the tune table comes from the model's shapes.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from qvl_core.qwen3vl.budgets import apply_media
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.load import open_config, open_processor
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.panels import panels, picture_sizes
from qvl_core.qwen3vl.presets import meta_model
from qvl_core.qwen3vl.transcript import read
from qvl_core.recipe.doubts import unsaved
from qvl_core.training.batches import SampleBatches
from qvl_core.training.samples import Place
from qvl_data.checking import conclude, first_samples, leaks, read_list, show_lists
from qvl_data.sources import Item, mixtures
from qvl_data.stream import ChatSamples, witness
from qvl_mdlm.batch import Noised, collation
from qvl_mdlm.build import chat_samples, embedding_rows, noising_of
from qvl_mdlm.canvas import on_terminal, pieces
from qvl_mdlm.model import configured
from qvl_mdlm.recipe import MDLMRecipe

RANK, STEPS = 8, 600  # what LoRA needed to answer one token a pass (benchmarks/conversion.py)
LARGE = 1e9  # parameters; smaller models bear higher rates


def check(recipe: MDLMRecipe, out: Path | None = None) -> None:
    """Print data facts, the first batch, the tune table and warnings; `out` gets them as check.html, and bad samples.

    Raises BadInput for what cannot be meant, and if the data holds more bad samples than data.max_bad allows.
    """
    console = Console(record=True)
    lists = mixtures(recipe.data)
    stock, processor = open_config(recipe.model.name, recipe.model.revision), open_processor(recipe.model)
    apply_media(processor, recipe.media)
    tokenizer, config = processor.tokenizer, configured(stock, processor, recipe.diffusion)
    table = apply_tune(
        meta_model(stock),
        recipe.tune,
        seed=0,
        optim=recipe.optim,
        quantization=recipe.model.quantization,
        rows=embedding_rows(recipe, config),
    )
    noising = noising_of(recipe, config, processor)
    streams = {name: chat_samples(recipe, mixture, processor, noising) for name, mixture in lists.items()}

    def first_masks(stream: ChatSamples, item: Item) -> Noised:
        return noising(stream.encode_item(item), Place(0, 0, 1))[0]

    facts = {name: read_list(lists[name], partial(first_masks, stream)) for name, stream in streams.items()}
    show_lists(facts, console)

    samples = streams["train"]
    collate = collation(processor, recipe.batch.packing, patterned=config.pattern != "full")
    batches = SampleBatches(samples, recipe.batch, recipe.train.seed, collate, witness(processor), noising)
    console.print(f"first batch (seed {recipe.train.seed}); what may be masked is green:", style="bold")
    rows = batches.rows(0)
    places = batches.places(0, rows)

    def at(position: int) -> tuple[Encoded, Noised]:
        chat = samples.encode(position)
        return chat, noising(chat, places[position])[0]

    for whole, masked in first_samples(at, rows):
        console.print(panels(whole.id, read(whole, tokenizer), picture_sizes(whole, processor)))
        console.print(as_read(masked, tokenizer, config.mask_token_id))
    console.print(table.rich())
    console.print(f"the mask is row {config.mask_token_id:,} of the embedding; attention {config.pattern}")
    console.print(f"{batches.steps_of(recipe.train)} steps; one epoch is {len(samples):,} samples")
    conclude(console, (*warnings(recipe, table.parameters), *leaks(lists)), facts, recipe.data.max_bad, out)


def as_read(sample: Noised, tokenizer: Any, mask: int | None) -> Text:
    """What of a sample may be masked, as the model reads it: masks, and what they leave."""
    first = int((~sample.clean).argmax())
    return Text("as it is read: ", style="dim").append_text(
        on_terminal(pieces(sample.ids[first:], (), tokenizer, mask))
    )


def warnings(recipe: MDLMRecipe, parameters: int) -> Iterator[str]:
    """One sentence for each doubt about a recipe for a model of so many parameters."""
    llm = recipe.tune.get("llm")
    if llm is None or llm.mode == "frozen":
        yield "tune.llm is frozen: attention that sees both ways is new to it, and it is what has to learn."
    elif llm.mode == "lora" and llm.rank < RANK:
        yield (
            f"tune.llm.rank {llm.rank}: ranks below {RANK} did not convert a tiny model in {STEPS} steps, not even "
            "for one token a pass; take 16 or more, with which a threshold also needs fewer passes, or train in full."
        )
    elif llm.mode == "lora" and recipe.train.steps is not None and recipe.train.steps < STEPS:
        yield (
            f"train.steps {recipe.train.steps}: LoRA needed {STEPS} to convert a tiny model (full training 200); raise "
            "them, or train in full."
        )
    if recipe.sampling.steps is not None and recipe.sampling.steps < recipe.evaluate.max_new_tokens:
        yield (
            f"sampling.steps {recipe.sampling.steps} writes several tokens at once whether they agree or not; "
            "`sampling: {threshold: 0.9, eos_guard: true}` writes together what is certain alone."
        )
    rate = (llm.lr if llm is not None and llm.lr is not None else recipe.optim.lr) if llm else recipe.optim.lr
    if llm is not None and llm.mode == "full" and parameters > LARGE and rate > 1e-4:
        yield f"tune.llm: {rate:g} is high for full training of a model of this size; 1e-5 to 5e-5 is usual."
    if recipe.diffusion.pad_to is None and recipe.diffusion.attention != "block":
        yield "diffusion.pad_to is null: no canvas is longer than its answer, so sampling has to know the length."
    longest = recipe.evaluate.max_new_tokens
    key = "block_size" if recipe.diffusion.attention == "block" else "pad_to"
    multiple = getattr(recipe.diffusion, key)
    if multiple and longest % multiple:
        yield (
            f"evaluate.max_new_tokens {longest} is no multiple of diffusion.{key} {multiple}: canvases of this length "
            "were not trained on."
        )
    yield from unsaved(recipe)
