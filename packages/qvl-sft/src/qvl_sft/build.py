"""From a recipe to the parts that the loop trains: data, model, tune groups, loss, evaluation, export."""

from dataclasses import replace
from functools import partial
from typing import Any

from qvl_core.qwen3vl.export import export
from qvl_core.qwen3vl.learning import learned_parts, open_features, tuned_model
from qvl_core.qwen3vl.lora import TuneTable
from qvl_core.recipe.blocks import Model
from qvl_core.run import RunFolder, Scalar
from qvl_core.training.parts import Parts
from qvl_core.training.world import World
from qvl_data.sources import mixtures
from qvl_sft.alignment import align
from qvl_sft.base import base_model
from qvl_sft.batch import chat_batches, chat_samples, collation
from qvl_sft.evaluate import Evaluation
from qvl_sft.known_good import idle_devices
from qvl_sft.plan import predict
from qvl_sft.recipe import SFTRecipe, check_mergers_learn
from qvl_sft.references import check_stop
from qvl_vision.checkpoint import mark_merger_trained
from qvl_vision.config import QVLVisionConfig, has_new_merger
from qvl_vision.freezing import freeze_unused


def build(recipe: SFTRecipe, run: RunFolder, world: World, allow_change: bool = False) -> Parts:
    """Everything that `recipe` says, ready to train; stage one, if there are two, is then done.

    allow_change  continue a stage one that began with another recipe

    Raises BadInput for what cannot be meant, and what a run raises.
    """
    lists = mixtures(recipe.data)  # before the model: what is wrong with the data is known at once
    base: Model
    aligned: dict[str, Scalar] = {}
    if recipe.train.stage == "two":
        base, aligned = align(recipe, run, world, build, allow_change)
    else:
        base = base_model(recipe, run, world)
    model, processor, table = open_model(recipe, base, world)
    cache = open_features(recipe, model, run, world)
    batches = chat_batches(recipe, chat_samples(recipe, lists["train"], processor), cache)
    evaluation = Evaluation(
        lists={name: mixture for name, mixture in lists.items() if name != "train"},
        processor=processor,
        collate=collation(processor, recipe.batch.packing),
        metrics=recipe.evaluate.metrics,
        max_new_tokens=recipe.evaluate.max_new_tokens,
        train_on=recipe.data.train_on,
        samples=recipe.evaluate.samples,
        group_by=recipe.evaluate.group_by,
    )
    check_stop(recipe.evaluate, evaluation.lists)
    return learned_parts(
        recipe,
        base,
        model,
        table,
        batches,
        cache,
        world,
        predict=predict,
        identity={"content": lists["train"].fingerprint(), "train": ("stage", "alignment")},
        notes=[f"note: {sentence}" for sentence in idle_devices(recipe, world.size)],
        figures=aligned,
        evaluate=partial(evaluation.measure, run=run) if evaluation.lists else None,
        export=partial(export, model, processor, base, finish=mark_merger_trained if _trains_merger(recipe) else None),
    )


def open_model(recipe: SFTRecipe, base: Model, world: World) -> tuple[Any, Any, TuneTable]:
    """The model with its tune groups set up, its processor, and the tune table."""
    model, processor, table = tuned_model(recipe, base, world, command="qvl-sft")
    if base.init_from is None and has_new_merger(model.config):
        check_mergers_learn(recipe, model.config)
    return model, processor, _without_unused(model, table)


def _without_unused(model: Any, table: TuneTable) -> TuneTable:
    """Freeze what a swapped tower's tokens do not depend on (mask token, pooling head, layers after the one that is
    read): DDP would wait for its gradients. Gives the table without it."""
    swapped = isinstance(model.config.vision_config, QVLVisionConfig)
    if not swapped or not any(p.requires_grad for p in model.model.visual.encoder.parameters()):
        return table
    unused = sum(model.model.visual.encoder.get_parameter(name).numel() for name in freeze_unused(model))
    return TuneTable(
        tuple(replace(row, trainable=row.trainable - unused * (row.group == "vision")) for row in table.rows)
    )


def _trains_merger(recipe: SFTRecipe) -> bool:
    return "merger" in recipe.tune and recipe.tune["merger"].mode == "full"
