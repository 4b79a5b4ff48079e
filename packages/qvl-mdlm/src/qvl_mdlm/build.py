"""From a recipe to the parts that the loop trains: data, model, noise, loss, evaluation, export."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from qvl_core.qwen3vl.export import export
from qvl_core.qwen3vl.features import CachedCollate
from qvl_core.qwen3vl.learning import base_of, learned_parts, open_features, tuned_model
from qvl_core.run import RunFolder
from qvl_core.training.batches import SampleBatches
from qvl_core.training.parts import Parts
from qvl_core.training.world import World
from qvl_data.sources import Mixture, mixtures
from qvl_data.stream import ChatSamples, witness
from qvl_mdlm.batch import Corruption, Noising, collation
from qvl_mdlm.evaluate import Evaluation
from qvl_mdlm.layout import shape_of
from qvl_mdlm.model import configured
from qvl_mdlm.noise import Noise
from qvl_mdlm.plan import predict
from qvl_mdlm.probe import check_sees_both_ways
from qvl_mdlm.recipe import WRITTEN, MDLMRecipe
from qvl_mdlm.sampling import Sampling
from qvl_mdlm.settings import write_settings


def build(recipe: MDLMRecipe, run: RunFolder, world: World) -> Parts:
    """Everything that `recipe` says, ready to train. Raises BadInput for what cannot be meant."""
    lists = mixtures(recipe.data)  # before the model: what is wrong with the data is known at once
    base = base_of(recipe, run, world)
    configure = partial(configured, diffusion=recipe.diffusion)
    model, processor, table = tuned_model(
        recipe, base, world, command="qvl-mdlm", configure=configure, rows=partial(embedding_rows, recipe)
    )
    check_sees_both_ways(model)
    cache = open_features(recipe, model, run, world)
    noising = noising_of(recipe, model.config, processor)
    samples = chat_samples(recipe, lists["train"], processor, noising)
    collate = collation(processor, recipe.batch.packing, patterned=model.config.pattern != "full")
    batches = SampleBatches(
        samples,
        recipe.batch,
        recipe.train.seed,
        collate if cache is None else CachedCollate(collate, cache),
        witness(processor),
        noising,
    )
    measured = {name: mixture for name, mixture in lists.items() if name != "train"}
    evaluation = Evaluation(
        measured,
        processor,
        noising.corruption.shape,
        recipe.evaluate.metrics,
        sampling_of(recipe),
        train_on=recipe.data.train_on,
        samples=recipe.evaluate.samples,
    )
    return learned_parts(
        recipe,
        base,
        model,
        table,
        batches,
        cache,
        world,
        predict=predict,
        identity={"content": lists["train"].fingerprint(), "blocks": ("diffusion",)},
        about={"mask_token_id": model.config.mask_token_id},
        judged_by=judged_by(recipe),
        evaluate=partial(evaluation.measure, run=run) if measured else None,
        export=partial(_export, model, processor, base, configure),
    )


def chat_samples(recipe: MDLMRecipe, mixture: Mixture, processor: Any, noising: Noising) -> ChatSamples:
    """The endless, seeded order of a mixture's chats, not noised yet."""
    return ChatSamples(
        mixture,
        processor,
        recipe.train.seed,
        recipe.batch.max_length,
        recipe.batch.too_long,
        train_on=recipe.data.train_on,
        prompts=recipe.diffusion.prompt_loss,
        empty_answers=False,
        taken=noising.taken,
    )


def noising_of(recipe: MDLMRecipe, config: Any, processor: Any) -> Noising:
    """What becomes of a chat in training."""
    diffusion, batch = recipe.diffusion, recipe.batch
    shape = shape_of(config, processor.tokenizer, diffusion.pad_to)
    corruption = Corruption(shape, Noise.of(diffusion), config.mask_token_id, diffusion.norm)
    in_rows = batch.tokens is not None
    return Noising(corruption, recipe.train.seed, batch.max_length, in_rows, drop=batch.too_long == "drop")


def sampling_of(recipe: MDLMRecipe) -> Sampling:
    """How answers are written in evaluations."""
    how = recipe.sampling.model_dump()
    return Sampling(max_new_tokens=recipe.evaluate.max_new_tokens, seed=recipe.train.seed, **how)


def judged_by(recipe: MDLMRecipe) -> dict[str, Any]:
    """What early stopping's figure depends on: how answers are written, if it is one of answers."""
    stop = recipe.evaluate.early_stop
    return {"sampling": recipe.sampling.model_dump(mode="json")} if stop and stop.metric in WRITTEN else {}


def _export(model: Any, processor: Any, base: Any, configure: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """What the ecosystem loads; beside an adapter, how the base it names has to attend."""
    export(model, processor, base, folder, weights, configure=configure)
    if hasattr(model, "peft_config"):
        write_settings(model.config, folder)


def embedding_rows(recipe: MDLMRecipe, config: Any) -> tuple[int, ...]:
    """Rows of the embedding that are trained beside LoRA."""
    return (config.mask_token_id,) if recipe.diffusion.mask_row else ()
