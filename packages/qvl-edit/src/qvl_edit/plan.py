"""`qvl-edit plan`: memory and time of a recipe from exact shapes, without weights or a GPU.

Weights, gradients and optimizer states come from the real transformer on the meta device: exact. Activations come from
running it on tensors without storage and adding up what autograd keeps (counting.py). Assumed are square pictures, as
many sources as the recipe's weights allow at most, texts of usual length, and that the allocator needs what is alive at
the largest moment: the beginning or the end of the backward, the encoding of pictures before it, or the drawing of
previews, one at a time on each of several devices. The text encoder is no part of training.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from qvl_core.cards import Card, card
from qvl_core.qwen3vl import knobs, planning
from qvl_core.qwen3vl.lora import TuneTable, apply_tune
from qvl_core.qwen3vl.moments import PicturePlan, most
from qvl_core.qwen3vl.plan import (
    CONTEXT,
    FRAGMENTATION,
    GIB,
    MFU,
    PEAK_FLOPS,
    SHARDED,
    Strategy,
    quantized_bytes,
    state_bytes,
)
from qvl_core.qwen3vl.quantize import quantized_layers
from qvl_core.recipe.blocks import Group
from qvl_edit.profile import Profile
from qvl_edit.recipe import EditQuantization, EditRecipe
from qvl_edit.sampling import Sampling

if TYPE_CHECKING:
    from qvl_edit.counting import Work
    from qvl_edit.released import Configs

TEXT = 25  # tokens of an instruction of usual length, with what ends a prompt
FRAME = 6  # tokens about a picture in a prompt
VL_TOKEN = 28  # pixels along a side of a picture's token
CODED = 4  # copies of its widest layer that an autoencoder has at once
SMALLER = 512  # side of pictures that a knob turns to
WAITING = 0.75  # part of the blocks that one lets wait
BUS = (12e9, 50e9)  # bytes a second from host to device: PCIe 3 and 5, 16 lanes each
CASTS, GATHERED = "16-bit copies of trained weights", "gathered weights"


@dataclass(frozen=True)
class EditPlan(PicturePlan):
    """The plan of a recipe."""

    sources: int
    """Of each sample."""
    tokens: int
    """Of each sample: its text, its target and its sources."""
    side: int
    """Pixels of each picture."""
    learning: int
    """Bytes of one device, at most, while nothing is drawn."""
    waiting: int
    """Bytes of frozen weights that wait in the host's memory."""

    @property
    def forward(self) -> str:
        several = "source" if self.sources == 1 else "sources"
        drawn = "" if self.learning == self.peak else f"Steps need {self.learning / GIB:.1f} GiB. "
        waits = f"{self.waiting / GIB:.1f} GiB of each process wait in the host's memory. " if self.waiting else ""
        return (
            f"{drawn}{waits}Forwards of {self.pictures} x {self.tokens:,} tokens: {self.side} x {self.side} pixels, "
            f"{self.sources} {several}"
        )


def plan(recipe: EditRecipe, gpu: str | None = None) -> None:
    """Print parameters by group, the predicted memory of one device, and the step time; on `gpu`, whether it fits."""
    planned = predict(recipe, None if gpu is None else card(gpu))
    planning.show(planned, gpu, lambda: advice(recipe))


def advice(recipe: EditRecipe) -> str:
    """Which knobs of a recipe to turn when memory does not suffice."""
    return knobs.advice(recipe, predict, own=_knobs(recipe), last="lower pictures.size or mixture.sources")


def _knobs(recipe: EditRecipe) -> Iterator[tuple[str, EditRecipe]]:
    """Those of editing that are not turned yet, one at a time."""
    from qvl_edit.released import configs, transformer_shapes

    if recipe.pictures.size is None or recipe.pictures.size > SMALLER:
        yield f"pictures.size: {SMALLER}", knobs.changed(recipe, "pictures", size=SMALLER)
    full = any(group.mode == "full" for group in recipe.tune.values())
    whole = recipe.model.quantization is None and not recipe.speed.offload_blocks
    if not full and whole and recipe.parallel.strategy not in ("fsdp2", "zero3"):
        yield "model.quantization: nf4", knobs.changed(recipe, "model", quantization=EditQuantization(kind="nf4"))
    if not full and whole and recipe.parallel.planned in ("single", "ddp"):
        count = int(WAITING * len(transformer_shapes(configs(recipe.model)).transformer_blocks))
        waiting = knobs.changed(knobs.changed(recipe, "speed", offload_blocks=count), "train", recompute=True)
        more = "" if recipe.train.recompute else " with train.recompute: true"
        yield f"speed.offload_blocks: {count}{more}", waiting
    if full:
        yield "tune: {attn: {mode: lora}}", recipe.model_copy(update={"tune": {"attn": Group(mode="lora")}})


def predict(recipe: EditRecipe, on: Card | None = None, device: str = "cuda") -> EditPlan:
    """The plan of a recipe, on an H200 if no card is named; `auto` precision is taken as bf16."""
    from qvl_edit.counting import count_saved
    from qvl_edit.draw import TOKENS
    from qvl_edit.preview import SHOWN
    from qvl_edit.released import configs, shapes
    from qvl_edit.streaming import ALIVE

    world, strategy = recipe.parallel.processes, recipe.parallel.planned
    half = recipe.train.precision != "fp32"
    own = 2 if half else 4  # bytes of a frozen number
    made = configs(recipe.model)
    transformer, vae = shapes(recipe.model, made)
    low = _in_fewer_bits(recipe, transformer)
    table = _tuned(recipe, transformer)
    weights = list(transformer.parameters())
    trained = [p.numel() for p in weights if p.requires_grad]
    trained_bytes = 4 * sum(trained)
    coding = own * sum(p.numel() for p in vae.parameters()) if vae is not None else 0
    casts = 2 * sum(p.numel() for p in weights if p.requires_grad and p.ndim > 1) if half else 0
    gathered = 0
    if "frozen weights" in SHARDED[strategy]:
        gathered, casts = _gathered(transformer, strategy, own), 0

    share = ceil((recipe.batch.size or 1) / world)
    pictures = min(recipe.batch.micro or share, share)
    forwards = ceil(share / pictures)
    work = _work(recipe, made, pictures)
    layers = len(transformer.transformer_blocks)
    transformer.train()
    saved = count_saved(transformer, work, half, device)
    block, again = ceil(saved / layers), 0
    if recipe.train.recompute:
        transformer.enable_gradient_checkpointing()
        saved, again = count_saved(transformer, work, half, device), block
    widest = 0 if vae is None else _widest(vae) * prod(work.bucket.target)
    coded = CODED * own * widest * min(recipe.pictures.vae_batch, pictures)
    encoded = recipe.stored.latents is not None

    between = trained_bytes if strategy == "zero3" else 0  # which keeps room for gradients between steps
    gradients = trained_bytes if forwards > 1 else between
    in_backward: dict[str, float] = {
        "activations": saved + again,
        CASTS: casts,
        "gradients": gradients,
        GATHERED: gathered,
    }
    moments = {
        "as the backward begins": in_backward,
        "as the backward ends": in_backward | {"activations": again, CASTS: 0, "gradients": trained_bytes},
        "while pictures are encoded": in_backward | {"activations": 0 if encoded else coded, CASTS: 0, GATHERED: 0},
    }
    shown_together = min(SHOWN, max(1, TOKENS // work.tokens)) if world == 1 else 1
    at_work = shown_together * (block / pictures + _remembered(recipe, made, transformer, work, own))
    drawn = in_backward | {"activations": max(at_work, coded), "gradients": between}
    waits = _waiting(recipe, transformer, own)
    always: dict[str, float] = {
        "frozen weights": _frozen(recipe, weights, low, own) - sum(waits) + sum(waits[:ALIVE]),
        "autoencoder": coding,
        "trained weights (fp32)": trained_bytes,
        "optimizer states": state_bytes(trained, recipe.optim),
        "averaged weights": trained_bytes if recipe.optim.ema else 0,
    }
    optional = ("averaged weights", "autoencoder", GATHERED)
    _, learning = most(always, moments, strategy, world, optional)
    if recipe.sampling.preview != 0:
        moments["while previews are drawn"] = drawn
    moment, shown = most(always, moments, strategy, world, optional)

    of_sample = _of_sample(recipe, transformer, vae, work)
    flops = forwards * pictures * of_sample
    rate = PEAK_FLOPS if on is None else on.flops
    floor = flops / (rate if half else rate / 2)  # fp32 runs as TF32, at half the rate
    copied = 2 * forwards * sum(waits)  # forward and backward
    peak = sum(shown.values())
    return EditPlan(
        rows=shown,
        peak=peak,
        reserve=round(CONTEXT + FRAGMENTATION * peak),
        saved=saved,
        flops=flops,
        floor_seconds=max(floor, copied / BUS[1]),
        expected_seconds=(max(floor / MFU[1], copied / BUS[1]), max(floor / MFU[0], copied / BUS[0])),
        parameters=table.parameters,
        trainable=table.trainable,
        groups={row.group: (row.mode, row.parameters, row.trainable) for row in table.rows},
        devices=world,
        pictures=pictures,
        step=recipe.batch.size or 1,
        moment=moment,
        sources=len(work.bucket.sources),
        tokens=work.tokens,
        side=work.bucket.target[0],
        learning=sum(learning.values()),
        waiting=sum(waits),
    )


def operations(recipe: EditRecipe, shares: Mapping[int, float]) -> tuple[float, float]:
    """Operations of training for a token of a picture and, beside them, for a sample: by the line that lies nearest to
    samples of all numbers of sources. Their mean is exact; attention, which grows faster, bends what lies about it.

    shares  of samples, by number of sources
    """
    from qvl_edit.released import configs, shapes

    made = configs(recipe.model)
    transformer, vae = shapes(recipe.model, made)
    _tuned(recipe, transformer)
    works = [_work(knobs.changed(recipe, "mixture", sources={number: 1.0}), made, 1) for number in shares]
    found = [_of_sample(recipe, transformer, vae, work) for work in works]
    seen = [work.tokens - work.text for work in works]
    if len(found) == 1:
        return found[0] / seen[0], 0.0
    of_token, of_sample = np.polyfit(seen, found, 1, w=np.sqrt(list(shares.values())))
    return float(of_token), float(of_sample)


def sources_at_most(recipe: EditRecipe, profile: Profile) -> int:
    """The most sources that a step has a weight for; without weights one, where the checkpoint takes any."""
    weighted = [number for number, weight in (recipe.mixture.sources or {}).items() if weight]
    return min(max(weighted, default=1), profile.pictures)


def _work(recipe: EditRecipe, made: "Configs", pictures: int) -> "Work":
    """One forward: square pictures, texts of usual length."""
    from qvl_edit.counting import Work
    from qvl_edit.model import Call, OneStream, TwoStreams
    from qvl_edit.opening import sized

    geometry = sized(recipe.pictures, made.profile, made.grid, made.seen)
    sources = sources_at_most(recipe, made.profile)
    side = round(geometry.area**0.5)
    bucket = geometry.fit((side, side), [(side, side)] * sources)
    call: Call = TwoStreams(made.grid)
    seen = round((geometry.vl_area or 0) ** 0.5 / VL_TOKEN) ** 2
    if made.profile.one_stream:  # where the latents stand
        call = OneStream(made.grid, (FRAME,) * sources)
    return Work(pictures, TEXT + sources * (FRAME + seen), bucket, made.channels, call)


def _tuned(recipe: EditRecipe, transformer: Any) -> TuneTable:
    from qvl_edit.groups import groups

    patterns = groups(recipe.tune, len(transformer.transformer_blocks))
    return apply_tune(transformer, recipe.tune, 0, recipe.optim, patterns)


def _of_sample(recipe: EditRecipe, transformer: Any, vae: Any, work: "Work") -> float:
    """Operations of training for one sample, of a tuned transformer."""
    from qvl_edit.counting import count_encoding, count_training

    if recipe.train.recompute:
        transformer.enable_gradient_checkpointing()
    encoding = 0 if recipe.stored.latents is not None else count_encoding(vae, work)
    return count_training(transformer, work) / work.samples + encoding


def _in_fewer_bits(recipe: EditRecipe, transformer: Any) -> list[Any]:
    """Weights that are, of a transformer that is not tuned yet."""
    from qvl_edit.groups import groups

    quantization = recipe.model.quantization
    if quantization is None:
        return []
    patterns = groups(quantization.groups, len(transformer.transformer_blocks))
    return [transformer.get_submodule(name).weight for name in quantized_layers(transformer, quantization, patterns)]


def _frozen(recipe: EditRecipe, weights: Iterable[Any], low: Iterable[Any], own: int) -> int:
    """Bytes of what is frozen, of which `low` are in fewer bits."""
    packed = {id(weight): weight for weight in low}
    plain = own * sum(p.numel() for p in weights if not p.requires_grad and id(p) not in packed)
    if recipe.model.quantization is None:
        return plain
    return plain + sum(quantized_bytes(p.shape[0], p.shape[1], recipe.model.quantization, own) for p in packed.values())


def _remembered(recipe: EditRecipe, made: "Configs", transformer: Any, work: "Work", own: int) -> int:
    """Bytes of a picture's text and sources that one stream remembers between the steps of drawing: keys and values."""
    if not made.profile.one_stream:
        return 0
    config, grid = transformer.config, work.call.grid
    width = config.num_attention_heads * config.attention_head_dim
    ways = 1 + Sampling.of(recipe.sampling, made.profile.guidance).guided
    return ways * 2 * config.num_layers * width * own * (work.tokens - grid.tokens(work.bucket.target))


def _waiting(recipe: EditRecipe, transformer: Any, own: int) -> list[int]:
    """Bytes of the frozen weights of each block that waits, the largest first. Raises BadInput for what cannot wait."""
    from qvl_edit.streaming import waiting_blocks

    blocks = waiting_blocks(transformer, recipe.speed.offload_blocks)
    sizes = (sum(p.numel() for p in block.parameters() if not p.requires_grad) for block in blocks)
    return sorted((own * size for size in sizes), reverse=True)


def _gathered(transformer: Any, strategy: Strategy, own: int) -> int:
    """Bytes of weights that are whole: of FSDP two blocks (one computes, one arrives) and what belongs to none, in the
    type they compute in; of ZeRO-3 so many as it is told, in the type they are held in."""
    held = list(transformer.parameters())
    numel = sum(p.numel() for p in held)
    if strategy == "zero3":
        from qvl_core.training.zero import LIVE

        return round(sum((4 if p.requires_grad else own) * p.numel() for p in held) * min(1, LIVE / numel))
    blocks = [sum(p.numel() for p in block.parameters()) for block in transformer.transformer_blocks]
    return own * (2 * max(blocks) + numel - sum(blocks))


def _widest(vae: Any) -> int:
    """Channels of its layer of most numbers."""
    return max(vae.config.base_dim, getattr(vae.config, "decoder_base_dim", None) or 0)
