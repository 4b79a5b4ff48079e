"""Between log steps nothing waits for the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from toy import SIZE, ToyBatches, network, toy_parts, toy_recipe

from qvl_core.training.engine import Engine
from qvl_core.training.world import World

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: syncs are detected by its driver"),
]
COUNT = sum(range(1, SIZE + 1))


@contextmanager
def no_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def engine(precision: str, clip: float | None, model: nn.Module | None = None, **optim: Any) -> Engine:
    recipe = toy_recipe(train={"steps": 8, "seed": 3, "precision": precision, "clip": clip}, optim=optim)
    return Engine(toy_parts(model or network()), recipe, World(0, 1, torch.device("cuda", 0), "single"))


def share(step: int, **batches: Any) -> list[Any]:
    made = ToyBatches(seed=3, **batches)
    return [micro.pin_memory() for micro in made.build(made.plan(step, 0, 1))]


def test_a_sync_is_an_error_here() -> None:
    value = torch.ones(1, device="cuda")
    with no_sync(), pytest.raises(RuntimeError, match="synchronizing"):
        value.item()


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_step_waits(precision: str, clip: float | None) -> None:
    made = engine(precision, clip)
    made.step(0, share(0), COUNT)  # sets up the optimizer's state
    batches = [share(step, nan_steps=(2,)) for step in range(1, 5)]
    with no_sync():
        found = [made.step(step, batch, COUNT) for step, batch in enumerate(batches, start=1)]
    applied = torch.stack([figures.values for figures in found])[:, 1].tolist()
    assert applied[1] == 0
    if precision != "fp16":  # its scale may still be too high
        assert applied == [1, 0, 1, 1]


@pytest.mark.parametrize("optim", [{"name": "adamw_8bit"}, {"ema": 0.999}])
def test_nor_does_what_is_kept_beside_the_weights(optim: dict[str, Any]) -> None:
    if "name" in optim:
        pytest.importorskip("bitsandbytes")
    wide = nn.Sequential(nn.Linear(4, 2048), nn.Dropout(0.1), nn.Tanh(), nn.Linear(2048, 1))  # its averages are packed
    made = engine("bf16", 1.0, wide, **optim)
    made.step(0, share(0), COUNT)
    batches = [share(step, nan_steps=(2,)) for step in range(1, 4)]
    with no_sync():
        found = [made.step(step, batch, COUNT) for step, batch in enumerate(batches, start=1)]
    assert torch.stack([figures.values for figures in found])[:, 1].tolist() == [1, 0, 1]


def test_state_put_back_waits_for_nothing_either() -> None:
    made, resumed = engine("bf16", 1.0), engine("bf16", 1.0)
    made.step(0, share(0), COUNT)
    weights, state = (dict(entries) for entries in made.tensors().values())
    resumed.load(weights, state)
    batch = share(1)
    with no_sync():
        resumed.step(1, batch, COUNT)
    made.step(1, share(1), COUNT)
    for ours, theirs in zip(resumed.parts.model.parameters(), made.parts.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
