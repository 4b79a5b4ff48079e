"""`qvl-metaquery plan`: memory and time of a recipe from exact shapes, without weights or a GPU.

Weights, gradients and optimizer states come from the real modules on the meta device: exact. Activations come from
running these modules on tensors without storage and adding up what autograd keeps (counting.py). Assumed are prompts of
the longest caption with the pictures of the task, and that the allocator needs what is alive at the largest moment: the
beginning or the end of the backward, the encoding of pictures before it, or the drawing of previews, for which a model
that is shared between devices is gathered whole. (Loading needs less: FSDP and ZeRO-3 take module after module.)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from qvl_core.cards import Card, card
from qvl_core.qwen3vl import knobs, planning
from qvl_core.qwen3vl.lora import Row, apply_tune
from qvl_core.qwen3vl.moments import PicturePlan, most
from qvl_core.qwen3vl.plan import (
    CONTEXT,
    FRAGMENTATION,
    MFU,
    PEAK_FLOPS,
    SHARDED,
    quantized_bytes,
    state_bytes,
)
from qvl_core.qwen3vl.quantize import quantized_layers
from qvl_core.recipe.blocks import Group
from qvl_metaquery.dropout import Task
from qvl_metaquery.recipe import MetaQueryRecipe

FRAME = 64  # tokens of a system turn of usual length, and of what is between the turns
SHOWN: Mapping[Task, int] = {"t2i": 0, "reconstruct": 1, "edit": 1, "instruct": 2}  # pictures of a usual prompt
TOKEN = 32**2  # pixels of a picture's token
NARROW = 1024  # width of a connector that is much smaller than that of any released model's own
CODED = 4  # copies of its widest layer that an autoencoder has at once
CASTS, GATHERED = "16-bit copies of trained weights", "gathered weights"


@dataclass(frozen=True)
class DrawingPlan(PicturePlan):
    """The plan of a recipe."""

    prompt: int
    """Tokens of each prompt."""
    flops_per_picture: float
    """Operations of training, beside those of the tokens of its prompt."""
    flops_per_token: float
    """Operations of reading a token of a prompt."""

    @property
    def forward(self) -> str:
        return f"{self.pictures} pictures per forward, their prompts of {self.prompt} tokens"


def plan(recipe: MetaQueryRecipe, gpu: str | None = None) -> None:
    """Print parameters by group, the predicted memory of one device, and the step time; on `gpu`, whether it fits."""
    planned = predict(recipe, None if gpu is None else card(gpu))
    planning.show(planned, gpu, lambda: advice(recipe))


def advice(recipe: MetaQueryRecipe) -> str:
    """Which knobs of a recipe to turn when memory does not suffice."""
    shown = "queries.image_tokens" if SHOWN[recipe.flow.task] else "queries.caption_tokens"
    return knobs.advice(recipe, predict, own=_knobs(recipe), last=f"lower {shown} or flow.size")


def _knobs(recipe: MetaQueryRecipe) -> Iterator[tuple[str, MetaQueryRecipe]]:
    """Those of drawing that are not turned yet, one at a time; the shape of an earlier stage is given."""
    if recipe.flow.latents is None:
        yield "flow.latents: FOLDER of `qvl-metaquery encode`", knobs.changed(recipe, "flow", latents="FOLDER")
    if recipe.model.init_from is None:
        yield f"connector.width: {NARROW}", knobs.changed(recipe, "connector", width=NARROW)
    frozen = {"transformer": Group(mode="frozen")}
    if recipe.tune.get("transformer", Group()).mode != "frozen":
        yield "tune.transformer.mode: frozen", recipe.model_copy(update={"tune": recipe.tune | frozen})


def predict(recipe: MetaQueryRecipe, on: Card | None = None, device: str = "cuda") -> DrawingPlan:
    """The plan of a recipe, on an H200 if no card is named; `auto` precision is taken as bf16."""
    from qvl_metaquery.build import recompute
    from qvl_metaquery.counting import Work, count, count_encoding
    from qvl_metaquery.model import GROUPS
    from qvl_metaquery.preview import SHOWN as DRAWN
    from qvl_metaquery.released import latent_shape, shapes

    world, strategy = recipe.parallel.processes, recipe.parallel.planned
    half = recipe.train.precision != "fp32"
    own = 2 if half else 4  # bytes of a frozen number
    model, coder = shapes(recipe)
    low = quantized_layers(model.mllm, recipe.model.quantization) if recipe.model.quantization else []
    table = apply_tune(model, recipe.tune, seed=0, optim=recipe.optim, groups=GROUPS)
    of_group = {row.group: row for row in table.rows}
    named = dict(model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    held = {f"mllm.{name}.weight": named[f"mllm.{name}.weight"].shape for name in low}
    frozen = own * sum(p.numel() for name, p in named.items() if name not in trained | held)
    if recipe.model.quantization:
        frozen += sum(quantized_bytes(rows, columns, recipe.model.quantization, own) for rows, columns in held.values())
    coding = own * sum(p.numel() for p in coder.parameters()) if coder is not None else 0
    trained_bytes = 4 * sum(p.numel() for p in trained.values())
    casts = 2 * sum(p.numel() for p in trained.values() if p.ndim > 1) if half else 0
    of_layers, of_model = own * _gathered(model), own * sum(p.numel() for p in named.values())
    if strategy == "zero3":  # which gathers them as they are held, and FSDP in the type they compute in
        of_model = frozen + trained_bytes + casts
    if "frozen weights" in SHARDED[strategy]:
        casts = 0
    else:
        of_layers = of_model = 0

    share = ceil((recipe.batch.size or 1) / world)
    pictures = min(recipe.batch.micro or share, share)
    forwards = ceil(share / pictures)
    text = model.mllm.config.get_text_config()
    prompt = _prompt(recipe)
    keys = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * own  # of a token
    recompute(model, bool(recipe.train.recompute))
    work = Work(pictures, prompt, latent_shape(model, coder, recipe.flow.size))
    counted = count(model, work, half, device)
    saved, again = sum(counted.saved.values()), 0
    if recipe.train.recompute:
        recompute(model, False)
        layers = {"queries": text.num_hidden_layers, "connector": recipe.connector.layers or 1}
        layers["transformer"] = len(model.transformer.transformer_blocks)
        again = max(size // layers[part] for part, size in count(model, work, half, device).saved.items())
    widest = 0 if coder is None else coder.config.encoder_block_out_channels[0] * recipe.flow.size**2
    coded = CODED * own * widest  # of one picture

    gradients = trained_bytes if forwards > 1 else 0
    in_backward: dict[str, float] = {
        "activations": saved + again,
        CASTS: casts,
        "gradients": gradients,
        GATHERED: of_layers,
    }
    moments: dict[str, dict[str, float]] = {
        "as the backward begins": in_backward,
        "as the backward ends": in_backward | {"activations": again, CASTS: 0, "gradients": trained_bytes},
        "while pictures are encoded": in_backward | {"activations": 0 if recipe.flow.latents else coded, CASTS: 0},
        # Previews are decoded together.
        "while previews are drawn": {"activations": DRAWN * coded, CASTS: casts, "gradients": 0, GATHERED: of_model},
    }
    always = {
        "frozen weights": frozen,
        "autoencoder": coding,
        "trained weights (fp32)": trained_bytes,
        "optimizer states": state_bytes([p.numel() for p in trained.values()], recipe.optim),
        "averaged weights": trained_bytes if recipe.optim.ema else 0,
        "keys and values of prompts": keys * prompt * pictures,
    }
    optional = ("averaged weights", "autoencoder", GATHERED)
    moment, shown = most(always, moments, strategy, world, optional)

    # A prompt is read without gradients, token by token; what it shows goes through the tower in four times as many.
    of_token, seen = 2 * of_group["llm"].parameters, prompt - FRAME - recipe.queries.caption_tokens
    of_picture = (
        _flops(recipe, counted.flops, of_group) / pictures
        + 2 * 4 * seen * of_group["vision"].parameters
        + (0 if recipe.flow.latents else count_encoding(coder, recipe.flow.size))
    )
    flops = pictures * (of_picture + prompt * of_token)
    rate = PEAK_FLOPS if on is None else on.flops
    floor = forwards * flops / (rate if half else rate / 2)  # fp32 runs as TF32, at half the rate
    peak = sum(shown.values())
    return DrawingPlan(
        rows=shown,
        peak=peak,
        reserve=round(CONTEXT + FRAGMENTATION * peak),
        saved=saved,
        flops=forwards * flops,
        floor_seconds=floor,
        expected_seconds=(floor / MFU[1], floor / MFU[0]),
        parameters=table.parameters,
        trainable=table.trainable,
        groups={row.group: (row.mode, row.parameters, row.trainable) for row in table.rows},
        devices=world,
        pictures=pictures,
        prompt=prompt,
        flops_per_picture=of_picture,
        flops_per_token=of_token,
        step=recipe.batch.size or 1,
        moment=moment,
    )


def _prompt(recipe: MetaQueryRecipe) -> int:
    """Tokens of a prompt: the longest caption, and the pictures of the task within their limits."""
    each = recipe.flow.size**2 // TOKEN
    limits = [recipe.media.image_tokens, recipe.media.max_pixels and recipe.media.max_pixels // TOKEN]
    shown = SHOWN[recipe.flow.task] * min([each, *(limit for limit in limits if limit)])
    return FRAME + recipe.queries.caption_tokens + min(shown, recipe.queries.image_tokens or shown)


def _gathered(model: Any) -> int:
    """Numbers that FSDP has whole: two layers (one computes, one arrives) and what belongs to no layer."""
    from qvl_metaquery.build import shards_of

    layers = [sum(p.numel() for p in layer.parameters()) for layer in shards_of(model)]
    return 2 * max(layers) + sum(p.numel() for p in model.parameters()) - sum(layers)


def _flops(recipe: MetaQueryRecipe, forward: dict[str, float], rows: dict[str, Row]) -> float:
    """Operations of one forward and backward behind the prompts. The frozen model at the queries has gradients of
    inputs alone, as has a frozen Sana."""
    times = {"queries": 2, "connector": 3, "transformer": 3 if rows["transformer"].trainable else 2}
    return sum((times[part] + bool(recipe.train.recompute)) * operations for part, operations in forward.items())
