"""Ranges in which recipes are known to work. Outside them `check` says why it doubts; it never blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

from qvl_core.recipe.blocks import Group
from qvl_core.recipe.doubts import unsaved
from qvl_sft.recipe import SFTRecipe

LARGE = 1e9  # parameters; smaller models bear higher rates


@dataclass
class Content:
    """What was met in samples of data.train.

    reasoned  with reasoning in an answer
    lost      with reasoning in an earlier answer that is learned: the template of a Thinking checkpoint takes it out
    unmarked  without an answer to learn
    """

    samples: int = 0
    reasoned: int = 0
    lost: int = 0
    videos: int = 0
    unmarked: int = 0


def warnings(recipe: SFTRecipe, parameters: int, random_merger: bool = False) -> Iterator[str]:
    """One sentence for each doubt about a recipe for a model of so many parameters.

    random_merger  the checkpoint of model.name has a swapped tower whose merger has not been trained yet
    """
    random_merger = random_merger if recipe.model.vision is None else recipe.model.vision.new_merger
    known = recipe.train.stage == "two" or recipe.model.init_from is not None  # after stage one, or from weights
    new = {"merger", "deepstack_mergers"} if random_merger and not known else set()
    for name, group in recipe.tune.items():
        if name in new and group.mode == "full":
            yield from _about_new_merger(f"tune.{name}", group.lr or recipe.optim.lr, parameters)
        else:
            yield from _about_group(name, group, group.lr or recipe.optim.lr, parameters)
    if recipe.train.alignment is not None:
        yield from _about_new_merger("train.alignment", recipe.train.alignment.lr, parameters)
    steps = recipe.train.steps
    if recipe.schedule.warmup >= 1 and steps is not None and recipe.schedule.warmup > 0.2 * steps:
        yield f"schedule.warmup of {recipe.schedule.warmup:g} steps is over a fifth of the run; 3 % is usual."
    if not recipe.data.validation and recipe.train.epochs is not None and recipe.train.epochs > 1:
        yield "data.validation is empty: over several epochs only a validation loss shows overfitting."
    yield from unsaved(recipe)
    yield from _about_switches(recipe, parameters)
    yield from idle_devices(recipe, recipe.parallel.processes)


def about_data(recipe: SFTRecipe, met: Content, thinks: bool) -> Iterator[str]:
    """One sentence for each doubt about what was met in data.train, for a checkpoint that `thinks` or does not."""
    data, read = recipe.data, met.samples
    if met.reasoned and not thinks:
        yield (
            f"{met.reasoned:,} of {read:,} samples read hold reasoning (<think>), which this checkpoint learns as text "
            "of its answers: a Thinking checkpoint is asked for it."
        )
    if read and thinks and not met.reasoned:
        yield (
            "no answer that was read holds reasoning, which a Thinking checkpoint writes first: its template gives an "
            "empty one and the answers alone are learned; for answers without reasoning take an Instruct checkpoint."
        )
    if met.lost and thinks:
        yield (
            f"{met.lost:,} of {read:,} samples read hold reasoning in earlier turns, which the template takes out, and "
            "those answers are learned without it; data.train_on=last learns only what is asked for."
        )
    if met.unmarked and data.train_on == "none":
        yield (
            f"data.train_on is none, and {met.unmarked:,} of {read:,} samples read mark no answer (`train: true`): "
            "each counts as a bad sample."
        )
    given = [f"media.{key}" for key in CLIPS if getattr(recipe.media, key) is not None]
    if read and given and not met.videos:
        yield f"{', '.join(given)}: no sample that was read holds a video."


CLIPS = ("video_tokens", "frame_tokens", "fps", "min_frames", "max_frames")


def _about_switches(recipe: SFTRecipe, parameters: int) -> Iterator[str]:
    """Weights in fewer bits, and what pays only over a longer run."""
    steps, held = recipe.train.steps, recipe.model.quantization
    if held is not None:
        if exposed := [name for name in held.groups if name in ("vision", "merger", "deepstack_mergers", "lm_head")]:
            yield f"model.quantization.groups: {', '.join(exposed)} suffer most from fewer bits; llm alone is usual."
        rates = {name: group.lr or recipe.optim.lr for name, group in recipe.tune.items() if group.mode == "lora"}
        for name in held.groups:
            if held.kind == "nf4" and rates.get(name, 0) > 5e-4 and parameters > LARGE:
                yield f"tune.{name}: lr {rates[name]:g} is high over 4-bit weights; QLoRA uses 1e-4 to 2e-4."
    if steps is not None and recipe.optim.ema is not None and steps < 100:
        yield f"optim.ema: over {steps} steps the average holds little but the last few; train longer, or leave it."
    if steps is not None and recipe.speed.compile and steps < 200:
        yield f"speed.compile: the first steps take minutes longer, which {steps} steps do not win back."
    named = {"metrics", "group_by"} & recipe.evaluate.model_fields_set
    if named and recipe.evaluate.metrics and not (recipe.data.validation or recipe.data.test):
        keys = ", ".join(f"evaluate.{key}" for key in sorted(named))
        yield f"{keys}: nothing is measured without references; name samples in data.validation or data.test."


def idle_devices(recipe: SFTRecipe, processes: int) -> Iterator[str]:
    """A sentence if a step has fewer rows than there are processes to work on them."""
    batch = recipe.batch
    rows = batch.size or (batch.tokens or 0) // batch.max_length
    if rows < processes:
        what, key = ("samples", "size") if batch.size else (f"packed rows of {batch.max_length} tokens", "tokens")
        yield f"a step has {rows} {what} for {processes} processes, so some only wait; raise batch.{key}."


def _about_new_merger(place: str, lr: float, parameters: int) -> Iterator[str]:
    if lr < 1e-4:
        yield (
            f"{place}: lr {lr:g} is too low for a new merger, which starts from random weights: at 2e-5 the digits "
            "were read at 0.30, at 1e-3 at 0.82; 1e-3 is usual."
        )
    if lr > 1e-2 and parameters > LARGE:
        yield f"{place}: lr {lr:g} is high for a new merger; 1e-3 is usual."


def _about_group(name: str, group: Group, lr: float, parameters: int) -> Iterator[str]:
    if group.mode == "lora":
        if lr < 2e-5:
            yield f"tune.{name}: lr {lr:g} is low for LoRA, which starts from zero; 1e-4 to 5e-4 is usual."
        if lr > 1e-3 and parameters > LARGE:
            yield f"tune.{name}: lr {lr:g} is high for LoRA on a large model; 1e-4 to 5e-4 is usual."
        yield from _about_lora(name, group, lr, parameters)
    if group.mode == "full" and parameters > LARGE:
        if name in ("llm", "embed", "lm_head", "vision") and lr > 5e-5:
            yield f"tune.{name}: lr {lr:g} is high for training in full; 1e-6 to 2e-5 keeps what the model knows."
        if name in ("merger", "deepstack_mergers") and lr > 1e-3:
            yield f"tune.{name}: lr {lr:g} is high for a merger; 1e-5 to 1e-4 is usual."
    if name == "vision" and group.mode == "lora" and lr > 2e-4 and parameters > LARGE:
        yield f"tune.vision: lr {lr:g} moves the tower quickly; a tenth of the language model's rate is usual."


def _about_lora(name: str, group: Group, lr: float, parameters: int) -> Iterator[str]:
    scale, what, usual, most = group.alpha / group.rank, "alpha / rank", "1 to 2", 4.0
    if group.rslora:
        scale, what, usual, most = group.alpha / group.rank**0.5, "alpha / sqrt(rank)", "1 to 4", 8.0
    if not 0.5 <= scale <= most:
        yield f"tune.{name}: {what} is {scale:g}; {usual} is usual."
    if group.dora:
        yield f"tune.{name}: DoRA puts each weight together anew in every forward: slower, and more memory than LoRA."
    if group.init == "pissa" and lr > 2e-4 and parameters > LARGE:
        yield f"tune.{name}: lr {lr:g} moves the main directions that PiSSA starts from; its authors use 2e-5."
    if group.plus > 1 and lr * group.plus > 5e-3 and parameters > LARGE:
        yield f"tune.{name}: lr {lr:g} x plus {group.plus:g} gives B a rate of {lr * group.plus:g}; lower lr with it."
