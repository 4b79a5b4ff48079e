"""Learning to draw at real sizes on a GPU, random weights: pictures per second against what the operations alone take.

    nox -s gpu

Speed does not depend on what the weights are. The same code runs on a CPU with tiny parts in the fast suite, so that it
still works when a GPU is at hand. Latents are computed before, so the autoencoder takes no part.
"""

import copy
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SanaTransformer2DModel
from transformers import AutoModelForImageTextToText

from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.encoded import IGNORE
from qvl_core.qwen3vl.lora import apply_tune, parameter_groups
from qvl_core.qwen3vl.plan import GIB
from qvl_core.qwen3vl.presets import config
from qvl_core.qwen3vl.tiny import tiny_config, tiny_tokenizer
from qvl_core.training.engine import Engine
from qvl_core.training.operations import counting
from qvl_core.training.parts import Micro, Parts
from qvl_core.training.world import World
from qvl_metaquery.batch import Drawing, collate
from qvl_metaquery.connector import Connector
from qvl_metaquery.loss import drawing_loss
from qvl_metaquery.model import GROUPS, MetaQuery
from qvl_metaquery.recipe import MetaQueryRecipe
from qvl_metaquery.tiny import tiny_transformer

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
RATE = 790e12  # bf16 operations per second that large products reach on an H200
AIM = 0.4  # part of the pictures that they would allow
PROMPT, QUERIES = 100, 256


@dataclass(frozen=True)
class Measured:
    """A training step: operations, the fastest one's seconds, the loss per picture, bytes at most."""

    operations: int
    seconds: float
    loss: float
    peak: int


def drawings(number: int, latent: tuple[int, int, int], prompt: int, words: int) -> list[Drawing]:
    """Pictures, each with a prompt of its own; `words` are the rows of the vocabulary."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(number):
        ids = rng.integers(5, words, prompt)
        picture, noise = rng.standard_normal((2, *latent), dtype=np.float32)
        labels, types = np.full(prompt, IGNORE), np.zeros(prompt, np.int64)
        level = float(rng.random()) or 1.0
        made.append(Drawing(str(index), ids, labels, types, picture=picture, noise=noise, level=level))
    return made


def measure(
    shape: Any, sana: Any, device: str, number: int, queries: int, layers: int, steps: int = 2, optim: str = "adamw"
) -> Measured:
    """Train queries, connector and `sana` before a random, frozen Qwen3-VL for some steps."""
    on = device == "cuda"
    tune = {group: {"mode": "full"} for group in ("queries", "connector", "transformer")}
    recipe = MetaQueryRecipe.model_validate(
        {
            "version": 1,
            "model": {"name": "random"},
            "tune": tune,
            "data": {"train": "none"},
            "queries": {"number": queries},
            "connector": {"layers": layers},
            "batch": {"size": number},
            "optim": {"name": optim},
            "train": {"steps": steps, "precision": "bf16" if on else "fp32"},
        }
    )
    torch.manual_seed(0)
    with torch.device(device):
        frozen = AutoModelForImageTextToText.from_config(
            copy.deepcopy(shape), dtype=torch.bfloat16 if on else torch.float32
        ).requires_grad_(False)
        attention.use(frozen)
        transformer = sana()
        width = shape.text_config.hidden_size
        connector = Connector(width, transformer.config.caption_channels, layers)
        model = MetaQuery(frozen, transformer, queries, connector)
    apply_tune(model, recipe.tune, seed=0, optim=recipe.optim, groups=GROUPS)
    side, channels = transformer.config.sample_size, transformer.config.in_channels
    samples = drawings(number, (channels, side, side), PROMPT, shape.text_config.vocab_size)
    batch = collate(samples, coded=True, merge=2, pad_id=0)
    parts = Parts(
        model=model,
        groups=parameter_groups(model, recipe.tune, recipe.optim, GROUPS),
        batches=[],  # type: ignore[arg-type]  # the engine is handed its micro-batches
        loss=partial(drawing_loss, coder=None),  # type: ignore[arg-type]  # pictures are latents already
        steps=steps,
        identity={},
        base="random",
    )
    engine = Engine(parts, recipe, World(0, 1, torch.device(device), "single"))
    micro = Micro(batch, number, 0, batch.prompts.ids, batch.prompts.tokens)
    if on:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with counting() as counter:
        engine.step(0, [micro], number)
    seconds, loss = [], 0.0
    for step in range(1, steps):
        began = time.perf_counter()
        loss = float(engine.step(step, [micro], number).values[3]) / number  # waits for the device
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if on else 0
    return Measured(counter.get_total_flops(), min(seconds), loss, peak)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(("size", "number", "needed"), [("2B", 16, 90), ("8B", 6, 134)])
def test_pictures_per_second(size: str, number: int, needed: int) -> None:
    """The connector has 24 layers of the language model's own width; Sana, of 1.6B, is trained as well."""
    free, _ = torch.cuda.mem_get_info()
    if free < needed * GIB:
        pytest.skip(f"needs {needed} GiB of free GPU memory")
    found = measure(
        config(f"Qwen3-VL-{size}"),
        lambda: SanaTransformer2DModel(sample_size=16),
        "cuda",
        number,
        QUERIES,
        layers=24,
        steps=8,
        optim="adamw_8bit",  # 6.5B of connector and 1.6B of Sana have no room for fp32 averages on one card
    )
    reached, allowed = number / found.seconds, RATE / found.operations * number
    print(f"{size}: {reached:.1f} pictures/s, {reached / allowed:.1%} of {allowed:.0f}, {found.peak / GIB:.1f} GiB")
    assert reached >= AIM * allowed


def test_the_same_on_a_cpu() -> None:
    """Nothing is asserted of its speed."""
    shape = tiny_config(tiny_tokenizer())
    found = measure(shape, lambda: tiny_transformer(4, 4), "cpu", number=2, queries=8, layers=1)
    assert 0 < found.loss < 20
    assert found.seconds > 0
    read = 2 * sum(p.numel() for p in layers_of(shape)) * 2 * PROMPT  # of the prompts alone
    assert found.operations > 1.3 * read


def layers_of(shape: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(shape).model.language_model.layers.parameters()
