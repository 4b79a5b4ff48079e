"""From a recipe to the parts that the loop trains: tasks, embeddings, autoencoder, transformer, loss, export."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.learning import check_weights_only
from qvl_core.qwen3vl.load import find_folder, fingerprint
from qvl_core.qwen3vl.lora import TuneTable, apply_tune, parameter_groups
from qvl_core.qwen3vl.quantize import check_library, quantize, quantized_layers
from qvl_core.run import RunFolder
from qvl_core.training.engine import DTYPES, resolve_precision
from qvl_core.training.identity import identity
from qvl_core.training.parts import Parts
from qvl_core.training.store import Store
from qvl_core.training.world import World
from qvl_data.sources import Mixture as Samples
from qvl_data.sources import mixtures
from qvl_edit.embed import open_pictures, open_tokenizer
from qvl_edit.filed import FILES_FIX, FiledEmbeddings, check_heads
from qvl_edit.groups import groups
from qvl_edit.latents import Vae
from qvl_edit.loss import edit_loss
from qvl_edit.mixture import Mixture
from qvl_edit.model import Call
from qvl_edit.opening import FOR_TRAINING, geometry_of
from qvl_edit.parts import load_transformer, open_call, open_shift, open_vae
from qvl_edit.plan import advice, operations
from qvl_edit.preview import Preview
from qvl_edit.profile import Profile, read_config, read_profile
from qvl_edit.recipe import EditModel, EditRecipe
from qvl_edit.sampling import Sampling
from qvl_edit.saving import save_adapters, save_transformer
from qvl_edit.settings import Settings
from qvl_edit.slots import Corruption, EditBatches, Reading, Told, any_length, content_of
from qvl_edit.stored import FIX, LATENTS_FIX, StoredEmbeddings, StoredLatents, about, about_latents
from qvl_edit.streaming import stream
from qvl_edit.tasks import Tasks, expanded, tasks_of
from qvl_edit.tiny import tiny
from qvl_edit.validation import validation


def build(recipe: EditRecipe, run: RunFolder, world: World) -> Parts:
    """Everything that `recipe` says, ready to train. Raises BadInput for what cannot be meant."""
    lists = mixtures(expanded(recipe.data))  # before the model: what is wrong with the data is known at once
    tasks = tasks_of(lists["train"])
    assert recipe.batch.size is not None
    mixture = Mixture(tasks.sources, recipe.batch.size, recipe.train.seed, recipe.mixture.tasks, recipe.mixture.sources)
    precision = resolve_precision(recipe.train.precision, world.device)
    folder = checkpoint_of(recipe, run, world)
    profile = read_profile(folder)
    check(recipe, lists["train"], mixture, profile)
    vae = open_vae(folder, DTYPES[precision], recipe.pictures.vae_batch).to(world.device)
    call = open_call(folder, profile)
    reading = reading_of(recipe, lists, folder, profile, vae.channels, call, DTYPES[precision], world)
    begun = transformer_of(recipe.model, folder)
    settings = settings_of(recipe, folder, begun)
    transformer, table = open_transformer(recipe, begun, DTYPES[precision], world.device)
    base = fingerprint(transformer)
    stream(transformer, recipe.speed.offload_blocks, world.device)
    batches = EditBatches(tasks, mixture, reading, recipe.mixture.dropout, recipe.batch.micro)
    steps = batches.steps_of(recipe.train)
    held_out = {name: samples for name, samples in lists.items() if name != "train"}
    measured = validation(held_out, reading, vae, call, recipe.evaluate.samples)
    if world.rank == 0:
        settings.write(run.path)  # a checkpoint can edit before there is a final/
        Console().print(table.rich(), shares(mixture, tasks), pace(mixture, steps), sep="\n")
    patterns = groups(recipe.tune, len(transformer.transformer_blocks))
    of_token, of_sample = operations_of(recipe, folder, mixture) if world.device.type == "cuda" else (None, 0.0)
    return Parts(
        model=transformer,
        groups=parameter_groups(transformer, recipe.tune, recipe.optim, patterns),
        batches=batches,
        loss=partial(edit_loss, vae=vae, call=call),
        steps=steps,
        identity=identity(
            recipe,
            content=content_of(tasks),
            steps=steps,
            precision=precision,
            blocks=("mixture", "pictures", "flow"),
            without={"pictures": ("vae_batch",)},
        ),
        base=base,
        about={
            "tune": [asdict(row) for row in table.rows],
            "base": str(folder),
            "base_commit": settings.revision,
            "profile": profile.name,
        },
        evaluate=partial(measured.measure, run=run) if held_out else None,
        preview=preview_of(recipe, lists, reading, vae, call, profile.guidance, world),
        preview_every=recipe.sampling.preview or None,
        in_step=True,
        export=partial(
            _export,
            settings,
            run.path,
            begun,
            DTYPES[precision],
            getattr(transformer, "peft_config", {}).get("default"),
        ),
        shards=list(transformer.transformer_blocks),
        flops_per_token=of_token,
        flops_per_count=of_sample,
        advice=partial(advice, recipe),
    )


def preview_of(
    recipe: EditRecipe,
    lists: Mapping[str, Samples],
    reading: Reading,
    vae: Vae,
    call: Call,
    guidance: float,
    world: World,
) -> Preview | None:
    """Pictures of data.validation; where there is none, of data.train, of which the empty text is stored alone. None
    if the recipe wants none.

    guidance  the checkpoint's, if the recipe says none
    """
    if recipe.sampling.preview == 0:
        return None
    sampling = Sampling.of(recipe.sampling, guidance)
    if "validation" in lists:
        return Preview(lists["validation"], reading, vae, call, sampling, world)
    return Preview(lists["train"], reading, vae, call, replace(sampling, negative=""), world)


def checkpoint_of(recipe: EditRecipe, run: RunFolder, world: World) -> Path:
    """The folder of the recipe's checkpoint; `tiny` is written to the run folder once."""
    check_weights_only(recipe.model)
    if recipe.model.name != "tiny":
        return find_folder(recipe.model.name, recipe.model.revision, "model.name", FOR_TRAINING)
    folder = run.path.resolve() / "base"
    world.on_first(lambda: folder.is_dir() or bool(tiny(folder, coder="patches")))
    return folder


def transformer_of(model: EditModel, checkpoint: Path) -> Path:
    """The folder of the transformer that is begun with: the checkpoint's, or that of `model.init_from`."""
    if model.init_from is None:
        return checkpoint / "transformer"
    folder = Path(model.init_from).expanduser() / "transformer"
    if not folder.is_dir():
        raise BadInput(
            f"model.init_from: {model.init_from} has no transformer/ to begin with; name the final/ of a run that "
            "trained more than adapters, or a checkpoint in the layout of diffusers."
        )
    return folder


def check(recipe: EditRecipe, samples: Samples, mixture: Mixture, profile: Profile) -> None:
    """Raise BadInput for data that this checkpoint, or stored embeddings, cannot be trained on."""
    if samples.augments:
        raise BadInput("data.train is augmented, and embeddings are of pictures as they are; remove `augment`.")
    if (most := max(mixture.numbers)) > profile.pictures:
        raise BadInput(
            f"model.name: {profile.name} takes at most {profile.pictures} sources, and there are samples of {most}; "
            f"set mixture.sources to numbers up to {profile.pictures}, or take another checkpoint."
        )
    if recipe.stored.embeddings is None and recipe.stored.layout == "shards":
        raise BadInput(
            "stored.embeddings: is not given; write a folder with `qvl-edit extract RECIPE --out FOLDER`, and name it."
        )


def reading_of(
    recipe: EditRecipe,
    lists: Mapping[str, Samples],
    folder: Path,
    profile: Profile,
    channels: int,
    call: Call,
    dtype: torch.dtype,
    world: World,
) -> Reading:
    """How samples become numbers. Raises BadInput for embeddings of another model, template, size or type."""
    geometry = geometry_of(recipe.pictures, profile, folder)
    origin = about(profile, geometry, folder, open_pictures(folder, profile), dtype)
    if "text_encoder" not in origin and world.rank == 0:
        Console().print(
            f"note: the text encoder's weights are not in {folder}, and training needs none; that the embeddings were "
            "made with this one is taken on trust.",
            style="yellow",
            markup=False,
        )
    width = read_config(folder / "transformer" / "config.json")[call.width]
    told = _told(recipe, lists, width, origin, world)
    corruption = Corruption(channels, call.grid, open_shift(folder), recipe.flow.times)
    coded = None
    if recipe.stored.latents is not None:
        latents, origin = Path(recipe.stored.latents).expanduser(), about_latents(geometry, folder, dtype)
        coded = StoredLatents(world.on_first(lambda: Store.open(latents, origin, LATENTS_FIX)), call.grid)
    length = any_length if call.padded else partial(profile.length, open_tokenizer(folder, profile))
    return Reading(told, width, geometry, corruption, recipe.mixture.inverse, coded, length)


def _told(
    recipe: EditRecipe, lists: Mapping[str, Samples], width: int, origin: Mapping[str, Any], world: World
) -> Told:
    """What texts with their pictures say, from shards or from files."""
    if recipe.stored.layout == "files":
        unknown = [folder for samples in lists.values() for folder in check_heads(samples, origin, FILES_FIX)]
        if unknown and world.rank == 0:
            Console().print(
                f"note: embeddings of {', '.join(dict.fromkeys(unknown))} do not say with which text encoder, template "
                "and sizes they were made; that they are this recipe's is taken on trust.",
                style="yellow",
                markup=False,
            )
        return FiledEmbeddings(width).pieces
    folder = Path(str(recipe.stored.embeddings)).expanduser()
    return StoredEmbeddings(world.on_first(lambda: Store.open(folder, origin, FIX))).pieces


def open_transformer(
    recipe: EditRecipe, folder: Path, dtype: torch.dtype, device: torch.device
) -> tuple[Any, TuneTable]:
    """The transformer in a folder, tuned and, where the recipe says so, held in fewer bits."""
    quantization = recipe.model.quantization
    if quantization is not None:
        check_library(quantization)
    transformer = load_transformer(folder, dtype)
    layers = len(transformer.transformer_blocks)
    patterns = groups(recipe.tune, layers)
    table = apply_tune(transformer, recipe.tune, recipe.train.seed, recipe.optim, patterns, wide=False)
    if quantization is not None:
        patterns = groups(quantization.groups, layers)
        for name in quantized_layers(transformer, quantization, patterns):
            if transformer.get_parameter(f"{name}.weight").requires_grad:
                raise BadInput(
                    f"tune: {name} is trained in full, and model.quantization holds it in fewer bits; train it by "
                    "`lora`, or name other parts in model.quantization.groups."
                )
        quantize(transformer, quantization, device, patterns)
    if recipe.train.recompute:
        transformer.enable_gradient_checkpointing()
    return transformer, table


def shares(mixture: Mixture, tasks: Tasks) -> str:
    """A line for each number of sources: how often a step is of it, which tasks it is then of, and which have none."""
    lines = []
    for number, row in zip(mixture.numbers, mixture.shares, strict=True):
        of = ", ".join(
            f"{name} {share / row.sum():.1%} ({int((tasks.sources[name] == number).sum()):,} samples)"
            for name, share in zip(mixture.tasks, row, strict=True)
            if share
        )
        without = [name for name, share in zip(mixture.tasks, row, strict=True) if not share]
        none = f"; none in {', '.join(without)}" if without else ""
        lines.append(f"{number} sources: {row.sum():.1%} of the steps, of {of}{none}")
    return "\n".join(lines)


def pace(mixture: Mixture, steps: int) -> str:
    return f"{steps} steps of {mixture.size} samples, of {len(mixture):,}"


def operations_of(recipe: EditRecipe, folder: Path, mixture: Mixture) -> tuple[float, float]:
    """Those of training for a token of a picture and, beside them, for a sample, as the plan counts them.

    folder  of the checkpoint, by which its shapes are known whatever its name is
    """
    model = recipe.model.model_copy(update={"name": str(folder)})
    shares = dict(zip(mixture.numbers, map(float, mixture.shares.sum(1)), strict=True))
    return operations(recipe.model_copy(update={"model": model}), shares)


def settings_of(recipe: EditRecipe, checkpoint: Path, begun: Path) -> Settings:
    """What what is trained needs beside weights."""
    name, own = recipe.model.name, checkpoint / "transformer"
    local = name == "tiny" or Path(name).expanduser().is_dir()
    return Settings(
        base=str(checkpoint.resolve()) if local else name,
        revision=None if local else checkpoint.name,  # the hub's cache has a folder for each commit
        transformer=None if begun == own else str(begun.resolve()),
        pictures=recipe.pictures,
        sampling=recipe.sampling,
    )


def _export(
    settings: Settings,
    run: Path,
    begun: Path,
    dtype: torch.dtype,
    adapters: Any,
    folder: Path,
    weights: Mapping[str, Tensor],
) -> None:
    """What diffusers loads. The transformer is read anew, because the one in training may be sharded."""
    settings.write(folder, run)
    save_adapters(folder, weights, adapters)
    save_transformer(folder, weights, lambda: load_transformer(begun, dtype))
