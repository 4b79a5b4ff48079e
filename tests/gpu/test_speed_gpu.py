"""Real sizes on a GPU, random weights: the plan's peak is the measured one, and the step is as fast as is aimed at.

    nox -s gpu

Speed and memory do not depend on what the weights are. The same code runs on a CPU with a tiny model in the fast suite,
so that it still works when a GPU is at hand.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from qvl_core.qwen3vl import attention, learning, offload
from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.learning import token_loss
from qvl_core.qwen3vl.lora import apply_tune, parameter_groups
from qvl_core.qwen3vl.offload import Offload
from qvl_core.qwen3vl.plan import GIB, MemoryPlan, Workload, plan_memory
from qvl_core.qwen3vl.presets import config
from qvl_core.qwen3vl.quantize import quantize
from qvl_core.qwen3vl.speed import speed_up
from qvl_core.qwen3vl.tiny import tiny_config, tiny_tokenizer
from qvl_core.recipe.blocks import Group, Quantization, Recipe, Speed
from qvl_core.training.engine import Engine
from qvl_core.training.parts import Micro, Parts
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
    host: int  # bytes of one step that waited for the backward on the host
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


@contextmanager
def on_the_host() -> Iterator[list[int]]:
    """Bytes of each tensor that is offloaded within."""
    copies: list[int] = []

    class Counted(offload._OnHost):
        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__(tensor)
            copies.append(self.host.nbytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload, "_OnHost", Counted)
        yield copies


def measure(
    shape: Any,
    method: str,
    samples: Sequence[Encoded],
    device: str,
    recompute: bool = False,
    steps: int = 2,
    speed: Speed | None = None,
) -> Measured:
    """Train a random model for some steps, all samples in one packed row."""
    tune, quantization = METHODS[method]
    speed = speed or Speed()
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
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(shape), dtype=dtype)
    attention.use(model)
    apply_tune(model, tune, seed=0, quantization=quantization)
    if quantization:
        quantize(model, quantization)
    speed_up(model, speed, recompute)
    batch: Batch = collate(samples, True, MERGE, 0)
    parts = Parts(
        model=model,
        groups=parameter_groups(model, tune, recipe.optim),
        batches=[],  # type: ignore[arg-type]  # the engine is handed its micro-batches
        loss=partial(token_loss, speed=speed),
        steps=steps,
        identity={},
        base="random",
    )
    engine = Engine(parts, recipe, World(0, 1, torch.device(device), "single"))
    micro = Micro(batch, batch.count, 0, batch.ids, batch.tokens)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, loss, host = [], 0.0, 0
    for step in range(steps):
        with on_the_host() as copies:
            began = time.perf_counter()
            loss = float(engine.step(step, [micro], batch.count).values[3]) / batch.count  # waits for the device
            seconds.append(time.perf_counter() - began)
        host = sum(copies)
    images = int((batch.types > 0).sum()) / batch.tokens
    work = Workload(batch.tokens, 1, batch.documents[0], images, batch.count / batch.tokens)
    planned = partial(plan_memory, shape, tune, work, precision, quantization=quantization, device=device, speed=speed)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Measured(planned(recompute), peak, host, min(seconds), loss, planned(False).flops)


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


ALONE = {  # each switch of `speed` turned from how it is by default, and what its loss may differ by
    "label_rows": (Speed(label_rows=False), 1e-2),
    "fused_optimizer": (Speed(fused_optimizer=False), 1e-2),
    "linear_patches": (Speed(linear_patches=False), 1e-2),
    "frozen_features": (Speed(frozen_features=False), 0),
    "offload": (Speed(offload=True), 0),
    "compile": (Speed(compile=True), 1e-2),
}


@pytest.fixture(scope="module")
def plain() -> dict[str, Measured]:
    """Steps of the 4B with every switch as it is by default, by method."""
    return {}


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("switch", ALONE)
def test_each_switch_alone(switch: str, method: str, plain: dict[str, Measured]) -> None:
    """Time and peak memory of a step of the 4B at 8,192 packed tokens, by what the switch does."""
    shape = config("Qwen3-VL-4B")
    free, _ = torch.cuda.mem_get_info()
    if free < (125 if method == "full" else 60) * GIB:
        pytest.skip("needs 60 GiB of free GPU memory for LoRA, 125 GiB to train in full")
    speed, within = ALONE[switch]
    samples = documents(shape, 8, 422, (24, 25))
    if method not in plain:
        plain[method] = measure(shape, method, samples, "cuda", steps=6)
    usual, turned = plain[method], measure(shape, method, samples, "cuda", steps=6, speed=speed)
    change, ratio = (turned.peak - usual.peak) / GIB, turned.seconds / usual.seconds
    print(
        f"{switch} turned, {method}: {ratio:.2f} times as long, "
        f"{change:+.1f} GiB of {usual.peak / GIB:.1f}, {turned.host / GIB:.1f} GiB on the host"
    )
    assert turned.loss == pytest.approx(usual.loss, rel=within)
    assert turned.plan.peak == pytest.approx(turned.peak, rel=0.1)
    if switch == "offload":
        assert turned.plan.host == pytest.approx(turned.host, rel=0.1)
        assert usual.peak - turned.peak > 0.8 * turned.host


def test_offload_alone_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies within the host's memory: what moves is what would leave a GPU, and the loss is the same to the bit."""
    shape = tiny_config(tiny_tokenizer())
    samples = documents(shape, 2, 60, (2, 3))
    usual = measure(shape, "full", samples, "cpu")
    monkeypatch.setattr(learning, "offloaded", lambda device: Offload())
    monkeypatch.setattr(offload, "MINIMUM", 0)
    turned = measure(shape, "full", samples, "cpu", speed=Speed(offload=True))
    assert (usual.host, turned.loss) == (0, usual.loss)
    assert turned.host == pytest.approx(turned.plan.saved, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_on_a_cpu(method: str) -> None:
    """Nothing is asserted of its speed."""
    shape = tiny_config(tiny_tokenizer())
    found = measure(shape, method, documents(shape, 2, 20, (2, 3)), "cpu", recompute=True)
    assert found.plan.workload.tokens == 2 * 28
    assert 0 < found.loss < 20
    assert found.seconds > 0
    assert found.useful < found.plan.flops
