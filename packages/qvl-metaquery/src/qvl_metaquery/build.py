"""From a recipe to the parts that the loop trains: data, Qwen3-VL, queries, connector, Sana, loss, pictures, export."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.budgets import apply_media
from qvl_core.qwen3vl.learning import check_weights_only
from qvl_core.qwen3vl.load import commit_of, fingerprint, summary
from qvl_core.qwen3vl.lora import TuneTable, apply_tune, parameter_groups
from qvl_core.qwen3vl.patches import linear_patches
from qvl_core.run import RunFolder
from qvl_core.training.batches import SampleBatches
from qvl_core.training.engine import DTYPES, resolve_precision
from qvl_core.training.identity import identity
from qvl_core.training.parts import Parts
from qvl_core.training.seeds import reseed
from qvl_core.training.world import World
from qvl_data.sources import Mixture, mixtures
from qvl_metaquery.batch import Corruption, DrawingSamples, collation, witness
from qvl_metaquery.coder import Coder, open_coder
from qvl_metaquery.latents import StoredLatents, open_latents
from qvl_metaquery.loss import drawing_loss
from qvl_metaquery.model import GROUPS, MetaQuery
from qvl_metaquery.opening import assemble, open_qwen, open_sana, open_transformer, sample_shift
from qvl_metaquery.plan import advice, predict
from qvl_metaquery.preview import Preview
from qvl_metaquery.prompts import PromptLayout
from qvl_metaquery.recipe import MetaQueryRecipe
from qvl_metaquery.sampling import Sampling
from qvl_metaquery.settings import Settings
from qvl_metaquery.stage import check_stage, stage_of, stage_report
from qvl_metaquery.tiny import tiny
from qvl_metaquery.validation import validation
from qvl_metaquery.weights import is_whole, own_weights, put, save, trained_transformer


def build(recipe: MetaQueryRecipe, run: RunFolder, world: World) -> Parts:
    """Everything that `recipe` says, ready to train. Raises BadInput for what cannot be meant."""
    lists = mixtures(recipe.data)  # before the model: what is wrong with the data is known at once
    base = base_of(recipe, run, world)
    opened = open_parts(base, world)
    base = at_commits(base)
    stored = world.on_first(lambda: open_latents(recipe, opened.coder, lists))
    shape = opened.coder.latent_shape(recipe.flow.size)
    samples = drawing_samples(recipe, lists["train"], opened.processor, shape, stored)
    collate = collation(opened.processor, coded=stored is not None)
    held_out = {name: mixture for name, mixture in lists.items() if name != "train"}
    measured = validation(held_out, samples, collate, opened.coder, recipe.evaluate.samples)
    preview = Preview(
        lists.get("validation", lists["train"]),
        recipe.flow.task,
        opened.processor,
        opened.coder,
        base.settings,
        sample_shift(base.settings, opened.sana),
        Sampling(**recipe.sampling.model_dump(exclude={"preview"})),
    )
    together = recipe.parallel.strategy == "zero3"  # its processes gather the tower together, or wait for one another
    shown = witness(samples, pictured=together)
    batches = SampleBatches(samples, recipe.batch, recipe.train.seed, collate, shown, pictured=together)
    steps = batches.steps_of(recipe.train)
    if world.rank == 0:
        base.settings.write(run.path)  # a checkpoint can draw before there is a final/
        pace = f"{steps} steps of {recipe.batch.size} pictures; one epoch is {len(samples):,} pictures"
        Console().print(summary(opened.model.mllm), *opened.begun, opened.table.rich(), pace, sep="\n")
    of_token, of_picture = operations(base, opened.sana) if world.device.type == "cuda" else (None, 0.0)
    return Parts(
        model=opened.model,
        groups=parameter_groups(opened.model, recipe.tune, recipe.optim, GROUPS),
        batches=batches,
        loss=partial(drawing_loss, coder=opened.coder),
        steps=steps,
        identity=identity(
            recipe,
            content=lists["train"].fingerprint(),
            steps=steps,
            precision=resolve_precision(recipe.train.precision, world.device),
            blocks=("sana", "queries", "connector", "flow"),
            without={"flow": ("latents", "sample_shift")},  # latents are equal to the bit, and the shift is of drawing
        ),
        base=fingerprint(opened.model),
        about={
            "tune": [asdict(row) for row in opened.table.rows],
            "base": base.model.name,
            "base_commit": base.model.revision,
        },
        evaluate=partial(measured.measure, run=run) if measured.lists else None,
        preview=None if recipe.sampling.preview == 0 else preview,
        preview_every=recipe.sampling.preview or None,
        export=partial(_export, base, opened, run.path),
        shards=shards_of(opened.model),
        flops_per_token=of_token,
        flops_per_count=of_picture,
        advice=partial(advice, recipe),
    )


@dataclass(frozen=True)
class Opened:
    """A recipe's parts, loaded and tuned.

    begun  what was loaded from an earlier stage, if there is one
    """

    model: MetaQuery
    processor: Any
    coder: Coder
    table: TuneTable
    sana: Path
    begun: tuple[str, ...] = ()


def base_of(recipe: MetaQueryRecipe, run: RunFolder, world: World) -> MetaQueryRecipe:
    """The recipe with names that last: tiny parts are written to the run folder once, folders are named whole."""
    check_weights_only(recipe.model)
    names = {"model": recipe.model.name, "sana": recipe.sana.name}
    if "tiny" in names.values():
        folder = run.path.resolve() / f"base-{recipe.train.seed}"
        world.on_first(lambda: folder.is_dir() or bool(tiny(folder, seed=recipe.train.seed)))
        names = {"model": str(folder / "qwen")} if names["model"] == "tiny" else {}
        names |= {"sana": str(folder / "sana")} if recipe.sana.name == "tiny" else {}
    whole = {block: str(Path(name).resolve()) for block, name in names.items() if Path(name).expanduser().is_dir()}
    changed = {block: getattr(recipe, block).model_copy(update={"name": name}) for block, name in whole.items()}
    return recipe.model_copy(update=changed)


def at_commits(recipe: MetaQueryRecipe) -> MetaQueryRecipe:
    """The recipe of opened parts with the commits of those that were fetched from the hub: drawing takes the same."""
    changed = {}
    for block, file in (("model", "config.json"), ("sana", "transformer/config.json")):
        named = getattr(recipe, block)
        commit = commit_of(named.name, named.revision, file)
        changed[block] = named.model_copy(update={"revision": commit or named.revision})
    return recipe.model_copy(update=changed)


def open_parts(recipe: MetaQueryRecipe, world: World) -> Opened:
    """Load and tune the parts of a recipe whose names last; new ones are drawn from its seed."""
    precision = resolve_precision(recipe.train.precision, world.device)
    if precision == "fp16":
        raise BadInput("train.precision: is fp16 here, in which Sana's attention overflows; set train.precision=fp32.")
    stage = stage_of(recipe)
    if stage is not None:
        check_stage(stage, recipe.settings)
    check_tune(recipe, stage)
    sana = open_sana(recipe.sana.name, recipe.sana.revision)
    plain = recipe.model.model_copy(update={"init_from": None})
    mllm, processor = open_qwen(plain, precision, world.device)
    apply_media(processor, recipe.media)
    from_stage = None if stage is None else trained_transformer(stage)
    learns = "transformer" in recipe.tune and recipe.tune["transformer"].mode != "frozen"
    dtype = torch.float32 if learns else DTYPES[precision]  # what learns begins with every bit that it has
    transformer = open_transformer(from_stage or sana / "transformer", dtype)
    reseed(recipe.train.seed, "queries and connector")
    model = assemble(mllm, transformer, recipe.settings)
    begun: tuple[str, ...] = ()
    if stage is not None:
        own = own_weights(stage)
        put(model, own, str(stage))
        begun = (stage_report(stage, recipe.settings, own, from_stage is not None),)
    table = apply_tune(model, recipe.tune, seed=recipe.train.seed, optim=recipe.optim, groups=GROUPS)
    recompute(model, bool(recipe.train.recompute))
    if recipe.speed.linear_patches:
        linear_patches(mllm)
    coder = open_coder(sana / "vae", DTYPES[precision]).to(world.device)
    coder.latent_shape(recipe.flow.size)
    return Opened(model, processor, coder, table, sana, begun)


def check_tune(recipe: MetaQueryRecipe, stage: Path | None) -> None:
    """Raise BadInput for new parts that nothing would train."""
    for group in ("queries", "connector"):
        frozen = group not in recipe.tune or recipe.tune[group].mode == "frozen"
        if frozen and stage is None:
            raise BadInput(
                f"tune.{group}: is new and would stay as it was drawn; set {{mode: full}}, or give model.init_from."
            )


def recompute(model: MetaQuery, wanted: bool) -> None:
    """Keep only what each layer takes, and compute the rest again in the backward pass, or do not."""
    model.recompute = model.connector.recompute = wanted
    if wanted:
        model.transformer.enable_gradient_checkpointing()
    else:
        model.transformer.disable_gradient_checkpointing()


def drawing_samples(
    recipe: MetaQueryRecipe,
    mixture: Mixture,
    processor: Any,
    shape: tuple[int, int, int],
    stored: StoredLatents | None = None,
) -> DrawingSamples:
    """The endless, seeded order of a mixture's pictures, whose latents are of `shape` (C, H, W)."""
    flow, queries = recipe.flow, recipe.queries
    return DrawingSamples(
        mixture,
        processor,
        PromptLayout(queries.system, queries.caption_tokens, queries.image_tokens),
        Corruption(shape, flow.train_shift, flow.times, flow.dropout),
        flow.task,
        flow.size,
        recipe.train.seed,
        stored,
    )


def shards_of(model: MetaQuery) -> list[torch.nn.Module]:
    """What FSDP gathers one by one."""
    return [*model.mllm.model.language_model.layers, *model.connector.layers, *model.transformer.transformer_blocks]


def operations(recipe: MetaQueryRecipe, sana: Path) -> tuple[float, float]:
    """Those of training for a token of a prompt and, beside them, for a picture, as the plan counts them.

    sana  its folder, by which its shapes are known whatever its name is
    """
    named = recipe.model_copy(update={"sana": recipe.sana.model_copy(update={"name": str(sana)})})
    planned = predict(named, device="cpu")  # operations are the same on each, and the one in use is left alone
    return planned.flops_per_token, planned.flops_per_picture


def _export(recipe: MetaQueryRecipe, opened: Opened, run: Path, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """What the pipeline loads. Sana is put together on the CPU, because the one in training may be sharded."""
    stage = stage_of(recipe)
    own = {name: value for name, value in weights.items() if not name.startswith("transformer.")}
    if stage is not None and not is_whole(own):
        own = own_weights(stage) | own
    trained = {name.removeprefix("transformer."): w for name, w in weights.items() if name.startswith("transformer.")}
    transformer = None
    before = None if stage is None or trained else trained_transformer(stage)
    if trained or before is not None:
        transformer = open_transformer(before or opened.sana / "transformer", torch.float32)
        transformer.load_state_dict(trained, strict=False)
    settings: Settings = recipe.settings
    save(folder, settings, own, transformer, opened.processor, run)
