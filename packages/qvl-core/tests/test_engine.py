"""One step: the mean, clipping, precision, and steps that are not applied."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy import SIZE, ToyBatches, network, toy_loss, toy_parts, toy_recipe

from qvl_core.errors import QVLError
from qvl_core.recipe.blocks import Train
from qvl_core.training import engine as module
from qvl_core.training.engine import Engine, resolve_precision
from qvl_core.training.world import World, processes

CPU = torch.device("cpu")
COUNT = sum(range(1, SIZE + 1))


def engine(model: nn.Module | None = None, fused: bool = True, **train: Any) -> Engine:
    train = {"steps": 8, "seed": 3, "precision": "fp32"} | train
    recipe = toy_recipe(train=train, schedule={"name": "constant"}, speed={"fused_optimizer": fused})
    return Engine(toy_parts(model or network(dropout=0.0)), recipe, World(0, 1, CPU, "single"))


def share(step: int, micro: int = 4, **batches: Any) -> list[Any]:
    made = ToyBatches(seed=3, micro=micro, **batches)
    return made.build(made.plan(step, 0, 1))


def everything(made: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for entries in made.tensors().values() for name, tensor in entries}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_one_step_of_eight_two_of_four_eight_of_one() -> None:
    """Samples count 1 to 8: a mean of means would be another one."""
    ends = []
    for micro in (8, 4, 1):
        made = engine(clip=None)
        for step in range(3):
            made.step(step, share(step, micro), COUNT)
        ends.append(everything(made))
    assert largest_difference(ends[0], ends[1]) < 1e-6
    assert largest_difference(ends[0], ends[2]) < 1e-6


@pytest.mark.parametrize("clip", [None, 1.0, 100.0])
def test_equals_plain_torch(clip: float | None) -> None:
    """clip_grad_norm_ and AdamW by hand; fused AdamW takes its gradients in the same order of operations up to 1e-7."""
    made, model = engine(clip=clip), network(dropout=0.0)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    for step in range(4):
        found = made.step(step, share(step), COUNT)
        for micro in share(step):
            (toy_loss(model, micro.batch).total / COUNT).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        plain.step()
        plain.zero_grad()
        assert found.values[:3].tolist() == pytest.approx([float(norm), 1, 0], rel=1e-6)
    for ours, theirs in zip(made.parts.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-7)


def test_figures_are_sums_over_the_global_batch() -> None:
    made = engine()
    losses = [float(toy_loss(made.parts.model, micro.batch).total.detach()) for micro in share(0)]
    found = made.step(0, share(0), COUNT)
    assert found.names == ("loss", "error")
    assert found.values[3:].tolist() == pytest.approx([sum(losses), sum(losses)], rel=1e-6)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_without_the_fused_kernel(precision: str, clip: float | None) -> None:
    """Equal to 1e-6, of which fp16's loss scale and a step that is not applied take nothing."""
    one, other = engine(precision=precision, clip=clip), engine(precision=precision, clip=clip, fused=False)
    for made in (one, other):
        made.scale.fill_(1024.0 if precision == "fp16" else 1.0)
    for step in range(6):
        found = [made.step(step, share(step, nan_steps=(3,)), COUNT).values for made in (one, other)]
        assert torch.allclose(*found, rtol=1e-5, equal_nan=True)
    assert dict(one.tensors()["optimizer"])["0.bias/step"] == 5
    assert one.state() == other.state()
    assert largest_difference(everything(one), everything(other)) < 1e-6


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_nan_leaves_weights_and_optimizer_bit_equal(precision: str, fused: bool) -> None:
    made = engine(precision=precision, fused=fused)
    made.scale.fill_(8.0 if precision == "fp16" else 1.0)
    for step in range(2):
        made.step(step, share(step), COUNT)
    before = everything(made)
    found = made.step(2, share(2, nan_steps=(2,)), COUNT)
    assert found.values[1:3].tolist() == [0, 1]
    after = everything(made)
    assert all(torch.equal(before[name], after[name]) for name in before)
    made.step(3, share(3), COUNT)
    assert largest_difference(before, everything(made)) > 0


def test_a_nan_in_the_very_first_step() -> None:
    made, untouched = engine(), engine()
    made.step(0, share(0, nan_steps=(0,)), COUNT)
    made.step(1, share(1), COUNT)
    untouched.step(1, share(1), COUNT)
    assert largest_difference(everything(made), everything(untouched)) == 0


def test_an_infinite_gradient_of_a_finite_loss_is_not_applied() -> None:
    def steep(model: nn.Module, batch: Any) -> Any:
        loss = toy_loss(model, batch)
        return loss._replace(total=loss.total.sqrt() * 0 + (model[3].bias * 0).sqrt().sum())  # d sqrt(0) = inf

    made = engine()
    made.parts = replace(made.parts, loss=steep)
    before = everything(made)
    found = made.step(0, share(0), COUNT)
    assert found.values[1:4].tolist() == [0, 1, 0]  # not applied, poisoned, the loss itself 0
    assert all(torch.equal(before[name], p) for name, p in everything(made).items() if name in before)


# fp16


def test_overflow_halves_the_scale_and_is_not_poison() -> None:
    made = engine(precision="fp16")
    assert made.scale.item() == 65536
    made.scale.fill_(2.0**40)
    found = made.step(0, share(0), COUNT)
    assert found.values[1:3].tolist() == [0, 0]
    assert made.state() == {"scale": 2.0**39, "finite_steps": 0}


def test_the_scale_changes_no_update() -> None:
    ends = []
    for scale in (1.0, 1024.0):
        made = engine(precision="fp16")
        made.scale.fill_(scale)
        for step in range(3):
            assert made.step(step, share(step), COUNT).values[1] == 1
        ends.append(everything(made))
    assert largest_difference(*ends) < 2e-2  # fp16 rounds other bits away


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_the_scale_follows_torch_grad_scaler(steps: list[bool]) -> None:
    """Same growth, back-off and start as torch.amp.GradScaler, with a growth interval of 5."""
    made, growth = engine(precision="fp16"), module.GROWTH_STEPS
    module.GROWTH_STEPS = 5
    try:
        theirs, tracker = torch.tensor([65536.0]), torch.zeros(1, dtype=torch.int32)
        for finite in steps:
            made._rescale(torch.tensor(finite))
            torch._amp_update_scale_(theirs, tracker, torch.tensor([float(not finite)]), 2.0, 0.5, 5)
            theirs.clamp_(min=1.0)
            assert made.state() == {"scale": theirs.item(), "finite_steps": tracker.item()}
    finally:
        module.GROWTH_STEPS = growth


# State


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_state_put_back_goes_on_bit_identically(precision: str) -> None:
    made = engine(network(), precision=precision)
    for step in range(3):
        made.step(step, share(step), COUNT)
    weights, state = ({name: t.clone() for name, t in entries} for entries in made.tensors().values())
    resumed = engine(network(seed=5), precision=precision)
    resumed.load(weights, state)
    resumed.load_scalars(made.state())
    for step in range(3, 6):
        made.step(step, share(step), COUNT)
        resumed.step(step, share(step), COUNT)
    assert largest_difference(everything(made), everything(resumed)) == 0
    assert made.state() == resumed.state()


def test_state_of_another_model_is_refused() -> None:
    made = engine()
    made.step(0, share(0), COUNT)
    weights, state = (dict(entries) for entries in made.tensors().values())
    with pytest.raises(QVLError, match=r"others than the recipe's: 0\.bias"):
        engine().load({name: t for name, t in weights.items() if name != "0.bias"}, dict(state))
    with pytest.raises(QVLError, match=r"0\.weight is \(16, 4\) in the checkpoint, \(3, 4\) here; undo this change"):
        engine(nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Tanh(), nn.Linear(3, 1))).load(weights, dict(state))
    with pytest.raises(QVLError, match=r"only \['exp_avg', 'step'\] of the optimizer's state of 0\.weight"):
        engine().load(weights, {name: t for name, t in state.items() if name != "0.weight/exp_avg_sq"})
    with pytest.raises(QVLError, match="unknown parameters: x"):
        engine().load(weights, {**state, "x/step": torch.tensor(1.0)})


def test_a_parameter_without_gradient_has_one_of_zero() -> None:
    """As if another process had sent it: it decays, and its momentum goes on."""
    model = network(dropout=0.0)
    model.register_parameter("idle", nn.Parameter(torch.ones(2, 2)))  # decayed, as every matrix of the toy
    made = engine(model)
    made.step(0, share(0), COUNT)
    assert model.get_parameter("idle").flatten().tolist() == pytest.approx([1 - 1e-2 * 0.1] * 4)
    assert dict(made.tensors()["optimizer"])["idle/step"] == 1


def test_trained_weights_are_fp32_and_frozen_ones_keep_their_type() -> None:
    model = network(dropout=0.0).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("3.")
    parts = toy_parts(model)
    groups = [
        group._replace(parameters={name: p for name, p in group.parameters.items() if p.requires_grad})
        for group in parts.groups
    ]
    made = Engine(
        replace(parts, groups=groups), toy_recipe(train={"steps": 8, "precision": "bf16"}), World(0, 1, CPU, "single")
    )
    assert made.step(0, share(0), COUNT).values[1] == 1
    assert [str(p.dtype) for p in model.parameters()] == ["torch.bfloat16"] * 2 + ["torch.float32"] * 2


def test_fsdp_takes_module_after_module_and_keeps_no_whole_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe = network(dropout=0.0), toy_recipe(parallel={"strategy": "fsdp2"})
    parts = replace(toy_parts(model), shards=[model[0], model[3]])
    given, left, shard = list(model.parameters()), [], module.fully_shard

    def watched(taken: nn.Module, **how: Any) -> Any:
        left.append([p.numel() for p in given])
        return shard(taken, **how)

    monkeypatch.setattr(module, "fully_shard", watched)
    monkeypatch.setattr(model, "to", None)  # a model that is moved whole has to fit whole
    with processes(recipe.parallel) as world:
        made = Engine(parts, recipe, world)
        assert made.step(0, share(0), COUNT).values[1] == 1
    assert left == [[64, 16, 16, 1], [0, 0, 16, 1], [0, 0, 0, 0]]
    assert [p.numel() for p in given] == [0, 0, 0, 0]


def test_dropout_depends_on_seed_step_and_slot_only() -> None:
    ends = []
    for noise in (0, 1):
        made = engine(network(dropout=0.5))
        for step in range(2):
            torch.manual_seed(noise)  # whatever was drawn before
            made.step(step, share(step), COUNT)
        ends.append(everything(made))
    assert largest_difference(*ends) == 0


def test_call_is_evaluation_and_leaves_training_as_it_was() -> None:
    made = engine(network(dropout=0.9))
    x = torch.ones(2, 4)
    outputs = [made.call(lambda model: (model.training, torch.is_grad_enabled(), model(x))) for _ in range(2)]
    assert outputs[0][:2] == (False, False)
    assert torch.equal(outputs[0][2], outputs[1][2])
    assert made.parts.model.training


def test_precision_auto() -> None:
    assert resolve_precision(Train(steps=1).precision, CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"


def test_the_process_keeps_its_matmul_precision_on_a_cpu() -> None:
    before = torch.get_float32_matmul_precision()
    engine(tf32=before == "highest")
    assert torch.get_float32_matmul_precision() == before
