"""AdamW with averages of 8 bits: it learns like AdamW, in a quarter of the memory, with the loop's guarantees."""

import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import child, die_after, toy_run
from torch import Tensor, nn
from toy import SIZE, STEPS, ToyBatches, toy_parts, toy_recipe

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Recipe
from qvl_core.training import adamw_8bit
from qvl_core.training.engine import Engine
from qvl_core.training.world import World

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
COUNT = sum(range(1, SIZE + 1))
WIDTH = 1100  # 4 x 1100 values: 17 blocks and a part of one


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, WIDTH), nn.Dropout(dropout), nn.Tanh(), nn.Linear(WIDTH, 1))


def recipe(name: str = "adamw_8bit", fused: bool = True, **train: Any) -> Recipe:
    train = {"steps": STEPS, "seed": 3, "precision": "fp32"} | train
    return toy_recipe(optim={"name": name}, speed={"fused_optimizer": fused}, train=train)


def engine(name: str = "adamw_8bit", fused: bool = True, lr: float = 1e-2, **train: Any) -> Engine:
    parts = toy_parts(network())
    groups = [group._replace(lr=lr) for group in parts.groups]
    made = recipe(name, fused, **train).model_copy(update={"schedule": toy_recipe().schedule})
    return Engine(replace(parts, groups=groups), made, World(0, 1, CPU, "single"))


def share(step: int, **batches: Any) -> list[Any]:
    made = ToyBatches(seed=3, **batches)
    return made.build(made.plan(step, 0, 1))


def everything(made: Engine) -> dict[str, Tensor]:
    return {name: tensor.clone() for entries in made.tensors().values() for name, tensor in entries}


def state_bytes(state: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for name, tensor in state.items() if not name.endswith("parts"))


def test_two_bytes_per_parameter_and_the_scales() -> None:
    made = engine()
    made.step(0, share(0), COUNT)
    state = dict(made.tensors()["optimizer"])
    matrix = {name: tensor for name, tensor in state.items() if name.startswith("0.weight/")}
    assert state_bytes(matrix) == 2 * (4 * WIDTH + 4 * ceil(4 * WIDTH / 256)) + 4
    assert {str(state[f"0.weight/{key}"].dtype) for key in adamw_8bit.AVERAGES} == {"torch.uint8"}
    assert {str(state[f"0.bias/{key}"].dtype) for key in adamw_8bit.AVERAGES} == {"torch.float32"}  # too small to pack


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_packing_loses_a_hundredth(key: str) -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 1e-3
    if key == "exp_avg_sq":
        values = values**2
    back = adamw_8bit.unpacked(*adamw_8bit.packed(values, key), key)
    assert ((back - values).abs() / values.abs()).median() < 0.015
    assert (back - values).abs().max() < 0.02 * values.abs().max()


def test_the_first_update_is_that_of_adamw() -> None:
    """Averages are packed after they have been used."""
    one, other = engine("adamw"), engine()
    for made in (one, other):
        made.step(0, share(0), COUNT)
    for ours, theirs in zip(one.parts.model.parameters(), other.parts.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_learns_like_adamw() -> None:
    """60 steps on endless noise: the mean loss of the last ten is that of AdamW up to 5 %, and far below the first."""
    means = {}
    for name in ("adamw", "adamw_8bit"):
        made = engine(name, steps=60, lr=3e-3)
        losses = [float(made.step(step, share(step), COUNT).values[3]) / COUNT for step in range(60)]
        means[name] = sum(losses[-10:]) / 10
        assert means[name] < losses[0] / 10
    assert means["adamw_8bit"] == pytest.approx(means["adamw"], rel=0.05)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for piece in (adamw_8bit.PIECE, 1024):
        monkeypatch.setattr(adamw_8bit, "PIECE", piece)
        made = engine()
        for step in range(3):
            made.step(step, share(step), COUNT)
        ends.append(everything(made))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_kernel_changes_nothing(fused: bool, clip: float | None) -> None:
    """Clipped by the true norm: a tenth of it moves the averages a tenth as far."""
    made, plain = engine(fused=fused, clip=clip), engine("adamw", clip=clip)
    for step in range(2):
        ours, theirs = (one.step(step, share(step), COUNT).values for one in (made, plain))
        assert ours.tolist() == pytest.approx(theirs.tolist(), rel=0.02)
    for name, theirs in plain.tensors()["optimizer"]:
        if name == "3.weight/exp_avg":  # too small to pack
            assert torch.allclose(dict(made.tensors()["optimizer"])[name], theirs, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_nan_leaves_weights_codes_scales_and_step_counts_bit_equal(precision: str, fused: bool) -> None:
    made = engine(fused=fused, precision=precision)
    made.scale.fill_(8.0 if precision == "fp16" else 1.0)
    for step in range(2):
        made.step(step, share(step), COUNT)
    before = everything(made)
    assert made.step(2, share(2, nan_steps=(2,)), COUNT).values[1:3].tolist() == [0, 1]
    after = everything(made)
    assert all(torch.equal(before[name], after[name]) for name in before)
    made.step(3, share(3), COUNT)
    assert int(everything(made)["0.weight/step"]) == 3


def test_a_nan_in_the_very_first_step() -> None:
    made, untouched = engine(), engine()
    made.step(0, share(0, nan_steps=(0,)), COUNT)
    made.step(1, share(1), COUNT)
    untouched.step(1, share(1), COUNT)
    one, other = everything(made), everything(untouched)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_states_are_taken_over_from_adamw_and_by_it() -> None:
    """Another optimizer is another run; whoever allows that change keeps the averages."""
    plain, packed, again = engine("adamw"), engine(), engine("adamw")
    for step in range(2):
        plain.step(step, share(step), COUNT)
    for source, target in ((plain, packed), (packed, again)):
        weights, state = (dict(entries) for entries in source.tensors().values())
        target.load(weights, state)
    one, other = everything(plain), everything(again)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=0, atol=0.02 * float(one[name].abs().max()))


def killed(out: Path, step: int) -> None:
    toy_run(out, replace(toy_parts(network(0.1)), callbacks=[die_after(step)]), recipe())


def test_killed_and_resumed_bit_identically(tmp_path: Path) -> None:
    toy_run(tmp_path / "whole", toy_parts(network(0.1)), recipe())
    assert child(killed, tmp_path / "run", 5) != 0
    toy_run(tmp_path / "run", toy_parts(network(0.1)), recipe())
    last = f"checkpoints/step-{STEPS:06d}"
    for file in ("final/model.safetensors", f"{last}/weights-00000.safetensors", f"{last}/optimizer-00000.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadInput, match=r"adamw_8bit needs bitsandbytes; pip install 'qvl-core\[quant\]'"):
        engine()
