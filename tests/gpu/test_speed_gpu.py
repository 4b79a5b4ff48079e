"""Real sizes on a GPU, random weights: the plan's peak is the measured one, and the step is as fast as is aimed at.

    nox -s gpu

Speed and memory do not depend on what the weights are. The same code runs on a CPU with a tiny model in the fast suite,
so that it still works when a GPU is at hand.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.lora import apply_tune, parameter_groups
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.qwen3vl.plan import GIB, MemoryPlan, Workload, plan_memory
from qvl_core.qwen3vl.presets import config
from qvl_core.qwen3vl.quantize import quantize
from qvl_core.qwen3vl.speed import speed_up
from qvl_core.qwen3vl.tiny import tiny_config, tiny_tokenizer
from qvl_core.recipe.blocks import Group, Quantization, Recipe, Speed
from qvl_core.training.engine import Engine
from qvl_core.training.parts import Loss, Micro, Parts
from qvl_core.training.world import World

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MERGE, PIXELS = 2, 1536
LORA, FULL = Group(mode="lora"), Group(mode="full")
METHODS: dict[str, tuple[dict[str, Group], Quantization | None]] = {
    "lora": ({"llm": LORA}, None),
    "qlora": ({"llm": LORA}, Quantization(kind="nf4")),
    "full": ({"llm": FULL, "merger": FULL}, None),
}


@dataclass(frozen=True)
class Measured:
    """A training step of a model, and what was planned for it."""

    plan: MemoryPlan
    peak: int  # bytes that torch had allocated at most; 0 on a CPU
    seconds: float  # the fastest step
    loss: float
    useful: float  # operations without those that are done again


def documents(shape: Any, number: int, words: int, picture: tuple[int, int]) -> list[Encoded]:
    """Chats of one picture (h, w in tokens) and random words, a fifth of all tokens labels."""
    rng, (h, w) = np.random.default_rng(0), picture
    made = []
    for index in range(number):
        before = [shape.vision_start_token_id, *[shape.image_token_id] * (h * w), shape.vision_end_token_id]
        ids = np.array([*before, *rng.integers(5, 250, words)])
        labels = np.where(np.arange(len(ids)) < 0.8 * len(ids), IGNORE, ids)
        grid = np.array([[1, MERGE * h, MERGE * w]])
        pixels = rng.normal(size=(grid.prod(), PIXELS)).astype(np.float32)
        made.append(Encoded(str(index), ids, labels, (ids == shape.image_token_id) * 1, pixels, grid))
    return made


def measure(
    shape: Any,
    method: str,
    samples: Sequence[Encoded],
    device: str,
    recompute: bool = False,
    steps: int = 2,
) -> Measured:
    """Train a random model for some steps, all samples in one packed row."""
    tune, quantization = METHODS[method]
    precision: Any = "bf16" if device == "cuda" else "fp32"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "model": {"name": "random"},
            "tune": tune,
            "data": {"train": "none"},
            "batch": {"size": len(samples)},
            "train": {"steps": steps, "precision": precision},
        }
    )
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(shape), dtype=dtype)
    attention.use(model)
    apply_tune(model, tune, seed=0, quantization=quantization)
    if quantization:
        quantize(model, quantization)
    speed_up(model, Speed(), recompute)
    batch: Batch = collate(samples, True, MERGE, 0)
    parts = Parts(
        model=model,
        groups=parameter_groups(model, tune, recipe.optim),
        batches=[],  # type: ignore[arg-type]  # the engine is handed its micro-batches
        loss=lambda model, batch: Loss(next_token_loss(model, batch), {}),
        steps=steps,
        identity={},
        base="random",
    )
    engine = Engine(parts, recipe, World(0, 1, torch.device(device), "single"))
    micro = Micro(batch, batch.count, 0, batch.ids, batch.tokens)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, loss = [], 0.0
    for step in range(steps):
        began = time.perf_counter()
        loss = float(engine.step(step, [micro], batch.count).values[3]) / batch.count  # waits for the device
        seconds.append(time.perf_counter() - began)
    images = int((batch.types > 0).sum()) / batch.tokens
    work = Workload(batch.tokens, 1, batch.documents[0], images, batch.count / batch.tokens)
    planned = partial(plan_memory, shape, tune, work, precision, quantization=quantization, device=device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Measured(planned(recompute), peak, min(seconds), loss, planned(False).flops)


def matrix_rate() -> float:
    """Operations per second of large bf16 products on this GPU."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * 8192**3 / (time.perf_counter() - began))
    return best


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", ["2B", "4B", "8B"])
def test_the_planned_peak_is_the_measured_one(size: str, method: str, recompute: bool) -> None:
    shape = config(f"Qwen3-VL-{size}")
    samples = documents(shape, 4, 400, (24, 25))
    tune, quantization = METHODS[method]
    expected = plan_memory(shape, tune, Workload(4096), recompute=recompute, quantization=quantization)
    free, _ = torch.cuda.mem_get_info()
    if free < 1.1 * (expected.peak + expected.reserve) + 2 * expected.parameters * (quantization is not None):
        pytest.skip(f"needs {(expected.peak + expected.reserve) / GIB:.0f} GiB of free GPU memory")
    found = measure(shape, method, samples, "cuda", recompute)
    assert found.plan.peak == pytest.approx(found.peak, rel=0.1)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(("recompute", "aim"), [(False, 0.45), (True, 0.33)])
def test_lora_of_8b_at_8192_packed_tokens(recompute: bool, aim: float) -> None:
    """The part of the measured matrix rate that useful operations reach."""
    shape = config("Qwen3-VL-8B")
    free, _ = torch.cuda.mem_get_info()
    if free < (28 if recompute else 80) * GIB:
        pytest.skip("needs 80 GiB of free GPU memory, 28 with recompute")
    found = measure(shape, "lora", documents(shape, 8, 422, (24, 25)), "cuda", recompute, steps=8)
    assert found.plan.workload.tokens == 8192
    reached = found.useful / found.seconds / matrix_rate()
    print(f"recompute {recompute}: {8192 / found.seconds:,.0f} tokens/s, {reached:.1%}, {found.peak / GIB:.1f} GiB")
    assert reached >= aim
    assert not recompute or found.peak <= 24 * GIB


@pytest.mark.parametrize("method", METHODS)
def test_the_same_on_a_cpu(method: str) -> None:
    """Nothing is asserted of its speed."""
    shape = tiny_config(tiny_tokenizer())
    found = measure(shape, method, documents(shape, 2, 20, (2, 3)), "cpu", recompute=True)
    assert found.plan.workload.tokens == 2 * 28
    assert 0 < found.loss < 20
    assert found.seconds > 0
    assert found.useful < found.plan.flops
