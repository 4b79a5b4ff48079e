"""What every method that learns tokens does before its first step: the base, the tuned model, the parts.

base = base_of(recipe, run, world)
model, processor, table = tuned_model(recipe, base, world, command="qvl-sft")
cache = open_features(recipe, model, run, world)
parts = learned_parts(recipe, base, model, table, batches, cache, world, predict=predict, identity=..., export=...)
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.batch import Batch
from qvl_core.qwen3vl.budgets import apply_media
from qvl_core.qwen3vl.compiling import check_compiler
from qvl_core.qwen3vl.features import FeatureBatch, FeatureCache, open_cache, sweep
from qvl_core.qwen3vl.knobs import advice
from qvl_core.qwen3vl.load import commit_of, fingerprint, load_model, summary
from qvl_core.qwen3vl.lora import CONFIG_FILE, TuneTable, apply_tune, load_adapter, parameter_groups
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.qwen3vl.offload import offloaded
from qvl_core.qwen3vl.plan import MemoryPlan
from qvl_core.qwen3vl.planning import flops_per_token
from qvl_core.qwen3vl.quantize import check_library, quantize
from qvl_core.qwen3vl.speed import speed_up
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Model, Recipe, Speed
from qvl_core.run import RunFolder
from qvl_core.training.batches import SampleBatches
from qvl_core.training.engine import resolve_precision
from qvl_core.training.identity import identity as identity_of
from qvl_core.training.parts import Loss, Parts
from qvl_core.training.world import World

R = TypeVar("R", bound=Recipe)


def base_of(recipe: Recipe, run: RunFolder, world: World) -> Model:
    """The model block to load. `tiny` is written to the run folder once, so that an adapter can name it as its base."""
    model, seed = recipe.model, recipe.train.seed
    check_weights_only(model)
    if model.name != "tiny":
        return model
    folder = run.path.resolve() / f"base-{seed}"
    world.on_first(lambda: folder.is_dir() or bool(tiny(folder, seed=seed)))  # whole or not at all
    return model.model_copy(update={"name": str(folder), "revision": None})


def check_weights_only(model: Model) -> None:
    """Raise BadInput if `init_from` names a checkpoint to be continued."""
    if model.init_from is not None and (Path(model.init_from) / "manifest.json").is_file():
        raise BadInput(
            f"model.init_from: {model.init_from} is a training checkpoint; continue it with --resume "
            f"{model.init_from}, or take the weights in its run's final/."
        )


def tuned_model(
    recipe: Recipe,
    base: Model,
    world: World,
    *,
    command: str,
    configure: Callable[[Any, Any], Any] | None = None,
    rows: Callable[[Any], Sequence[int]] = lambda _: (),
) -> tuple[Any, Any, TuneTable]:
    """The model with its tune groups set up, its processor, and the tune table.

    command    that merges adapters, for a message
    configure  as `load_model` takes it
    rows       of a model's configuration, the rows of the embedding that are trained beside LoRA
    """
    precision = resolve_precision(recipe.train.precision, world.device)
    if recipe.speed.compile:
        check_compiler(world.device.type)
    held = base.quantization
    if held is not None:
        check_library(held)
    plain = base.model_copy(update={"quantization": None})  # LoRA's first values may look at the weights in full
    device = "cpu" if held else world.device
    model, processor = load_model(
        plain, precision=precision, device=device, seed=recipe.train.seed, configure=configure
    )
    apply_media(processor, recipe.media)
    table = apply_tune(
        model,
        recipe.tune,
        seed=recipe.train.seed,
        optim=recipe.optim,
        quantization=held,
        rows=rows(model.config),
    )
    if held:
        quantize(model, held, world.device)
        model.to(world.device)
    if base.init_from is not None and (Path(base.init_from) / CONFIG_FILE).is_file():
        _continue_adapter(model, Path(base.init_from), command)
    speed_up(model, recipe.speed, recipe.train.recompute)
    return model, processor, table


def _continue_adapter(model: Any, folder: Path, command: str) -> None:
    """Take an adapter's values. What it has beyond what `tune` trains would be lost in the export: refused."""
    if not hasattr(model, "peft_config"):
        raise BadInput(
            f"model.init_from: {folder} is a LoRA adapter and `tune` has no LoRA to continue it; train it as well, or "
            f"make it part of the base: {command} merge {folder} --out FOLDER, model.name=FOLDER."
        )
    load_adapter(model, folder)


def open_features(recipe: Recipe, model: Any, run: RunFolder, world: World) -> FeatureCache | None:
    """The run's cache of tower outputs, if the recipe wants one. Raises BadInput for a tower that is trained."""
    if recipe.speed.cache_features is None:
        return None
    precision = resolve_precision(recipe.train.precision, world.device)
    how = f"linear {recipe.speed.linear_patches}, compiled {recipe.speed.compile}"
    folder = run.path / "features"
    world.on_first(lambda: sweep(folder))  # the others wait, so none writes yet
    return open_cache(model, folder, recipe.speed.cache_features, precision, how, share=world.size)


def token_loss(model: nn.Module, batch: Batch | FeatureBatch, speed: Speed, cache: FeatureCache | None = None) -> Loss:
    """The loss of the labels of a batch, each with its weight, summed."""
    encoded = None
    if cache is not None and isinstance(batch, FeatureBatch):
        encoded, batch = cache.encode(model, batch), batch.batch
    assert isinstance(batch, Batch)
    with offloaded(batch.input_ids.device) if speed.offload else nullcontext():
        return Loss(next_token_loss(model, batch, label_rows=speed.label_rows, encoded=encoded), {})


def learned_parts(
    recipe: R,
    base: Model,
    model: Any,
    table: TuneTable,
    batches: SampleBatches,
    cache: FeatureCache | None,
    world: World,
    *,
    predict: Callable[[R], MemoryPlan],
    identity: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    **own: Any,
) -> Parts:
    """The parts of a method that learns tokens, whose step it announces on the terminal.

    predict   the method's plan of a recipe
    identity  what the method adds to the arguments of `identity.identity`
    about     what it records beside tune table and base
    notes     sentences for the terminal
    own       further parts: evaluate, export, ...
    """
    steps = batches.steps_of(recipe.train)
    if world.rank == 0:
        Console().print(summary(model), table.rich(), _pace(recipe, steps, batches), *notes, sep="\n")
    precision = resolve_precision(recipe.train.precision, world.device)
    return Parts(
        model=model,
        groups=parameter_groups(model, recipe.tune, recipe.optim),
        batches=batches,
        loss=partial(token_loss, speed=recipe.speed, cache=cache),
        steps=steps,
        identity=identity_of(recipe, steps=steps, precision=precision, **identity),
        base=fingerprint(model),
        about={
            "tune": [asdict(row) for row in table.rows],
            "base": base.name,
            "base_commit": commit_of(recipe.model.name, recipe.model.revision),
            **(about or {}),
        },
        shards=shards_of(model, cache),
        flops_per_token=flops_per_token(predict(recipe)) if world.device.type == "cuda" else None,
        advice=partial(advice, recipe, predict),
        **own,
    )


def _pace(recipe: Recipe, steps: int, batches: SampleBatches) -> str:
    batch = recipe.batch
    amount = f"{batch.size} samples" if batch.size else f"up to {batch.tokens:,} tokens"
    return f"{steps} steps of {amount}; one epoch is {len(batches.samples):,} samples"


def shards_of(model: Any, cache: FeatureCache | None) -> list[nn.Module]:
    """What FSDP gathers one by one. A tower that some processes skip may not be: the others would wait."""
    return [*model.model.language_model.layers, *([] if cache else model.model.visual.blocks)]
