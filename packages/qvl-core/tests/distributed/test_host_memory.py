"""Shared weights become fp32 one module at a time: no process holds the whole of a large model."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from harness import together
from safetensors.torch import load_file, save_file
from torch import nn
from toy import toy_parts, toy_recipe

from qvl_core.training.engine import Engine
from qvl_core.training.sharding import local
from qvl_core.training.world import processes
from qvl_core.training.zero import _library, partition

pytestmark = pytest.mark.distributed
LAYERS, WIDTH = 8, 4096  # of 64 MiB, which malloc gives back at once
WHOLE = LAYERS * WIDTH**2 * 4  # bytes in fp32: 537 MB


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most bytes of its own that this process holds meanwhile, beyond those that it has at the start."""

    def held() -> int:
        info = psutil.Process().memory_info()
        return int(info.rss - info.shared)  # without pages of mapped files, which the system may drop

    start, found, done = held(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            found[0] = max(found[0], held() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def shard(file: Path) -> None:
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in range(LAYERS)))
    model.load_state_dict(load_file(file), assign=True)
    recipe = toy_recipe(parallel={"strategy": "fsdp2"})
    with processes(recipe.parallel) as world:
        with peak() as found:
            engine = Engine(toy_parts(model, shards=list(model)), recipe, world)
        assert WHOLE / 2 <= found[0] < WHOLE * 0.75, f"{found[0] / 1e6:.0f} MB"
        given = load_file(file)
        for name, weight in engine.tensors()["weights"]:
            assert weight.dtype is torch.float32
            assert torch.equal(weight, given[name].float())


def partitioned(file: Path) -> None:
    """By ZeRO-3. Afterwards all weights lie in equal parts, of which what else the engine needs is made."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in range(LAYERS)))
    model.load_state_dict(load_file(file), assign=True)
    recipe = toy_recipe(parallel={"strategy": "zero3"})
    with processes(recipe.parallel) as world:
        _library(world)
        parts = toy_parts(model, shards=list(model))
        with peak() as found:
            partition(model, parts.shards, set(model.parameters()), world.device)
        assert WHOLE / 2 <= found[0] < WHOLE * 0.75, f"{found[0] / 1e6:.0f} MB"
        engine = Engine(parts, recipe, world)
        held = [tensor.untyped_storage() for p in model.parameters() for tensor in (p, local(p))]
        assert sum({storage.data_ptr(): storage.nbytes() for storage in held}.values()) <= WHOLE / 2 * 1.01
        given = load_file(file)
        for name, weight in engine.tensors()["weights"]:
            assert weight.dtype is torch.float32
            assert torch.equal(weight, given[name].float())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells pages of mapped files from others")
@pytest.mark.parametrize("target", [shard, pytest.param(partitioned, marks=pytest.mark.deepspeed)])
def test_no_process_holds_the_whole_in_fp32(target: Callable[[Path], None], tmp_path: Path) -> None:
    if target is partitioned:
        pytest.importorskip("deepspeed")
    weights = {f"{layer}.weight": torch.randn(WIDTH, WIDTH).bfloat16() for layer in range(LAYERS)}
    save_file(weights, tmp_path / "model.safetensors")
    assert together(2, target, tmp_path / "model.safetensors") == [0, 0]


def test_a_weight_of_a_shard_and_of_another_module_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    recipe = toy_recipe(parallel={"strategy": "fsdp2"})
    with (
        processes(recipe.parallel) as world,
        pytest.raises(AssertionError, match=r"1.weight is a weight of one of Parts.shards and of a module outside it"),
    ):
        Engine(toy_parts(model), recipe, world)
