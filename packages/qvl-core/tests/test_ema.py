"""The average of the trained weights: what it is, what uses it, and what it leaves alone."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import child, die_after, toy_run
from safetensors.torch import load_file
from torch import Tensor
from toy import SIZE, STEPS, ToyBatches, network, toy_parts, toy_recipe

from qvl_core.errors import BadInput, Preempted
from qvl_core.recipe.blocks import Recipe
from qvl_core.training import average, checkpoint
from qvl_core.training.average import Average
from qvl_core.training.engine import Engine
from qvl_core.training.parts import Callbacks
from qvl_core.training.sharding import local
from qvl_core.training.world import World

CPU = torch.device("cpu")
COUNT = sum(range(1, SIZE + 1))
DECAY = 0.5  # reached at the ninth update, by way of 1/10, 2/11, 3/12 ...


def recipe(ema: float | None = DECAY, **blocks: Any) -> Recipe:
    return toy_recipe(optim={"ema": ema}, **blocks)


def engine(ema: float | None = DECAY, fused: bool = True) -> Engine:
    made = recipe(ema, train={"steps": STEPS, "precision": "fp32"}, speed={"fused_optimizer": fused})
    return Engine(toy_parts(network(dropout=0.0)), made, World(0, 1, CPU, "single"))


def share(step: int, **batches: Any) -> list[Any]:
    made = ToyBatches(seed=3, **batches)
    return made.build(made.plan(step, 0, 1))


def weights(made: Engine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in made.parts.model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def averaged(made: Engine) -> Average:
    assert made.average is not None
    return made.average


@pytest.mark.parametrize("fused", [True, False])
def test_equals_one_computed_by_hand(fused: bool) -> None:
    made = engine(fused=fused)
    expected = {name: tensor.double() for name, tensor in weights(made).items()}
    updates = 0
    for step in range(12):
        made.step(step, share(step, nan_steps=(2,)), COUNT)
        if step == 2:
            continue  # not applied
        decay = min(DECAY, (1 + updates) / (10 + updates))
        updates += 1
        for name, now in weights(made).items():
            expected[name] = decay * expected[name] + (1 - decay) * now.double()
    found = dict(averaged(made).tensors())
    assert made.state()["averaged"] == updates == 11
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor, rtol=0, atol=1e-6)
        assert (found[name] - weights(made)[name]).abs().max() > 1e-4


def test_a_step_that_is_not_applied_leaves_it_bit_equal() -> None:
    made = engine()
    made.step(0, share(0), COUNT)
    before = {name: tensor.clone() for name, tensor in averaged(made).tensors()}
    made.step(1, share(1, nan_steps=(1,)), COUNT)
    assert equal(before, dict(averaged(made).tensors()))


def test_evaluations_have_it_and_training_does_not() -> None:
    made, plain = engine(), engine(ema=None)
    for step in range(3):
        for one in (made, plain):
            one.step(step, share(step), COUNT)
        seen = made.call(lambda model: {name: p.detach().clone() for name, p in model.named_parameters()})
        assert equal(seen, dict(averaged(made).tensors()))
        assert equal(weights(made), weights(plain))
    with pytest.raises(KeyboardInterrupt):
        made.call(raise_interrupt)
    assert equal(weights(made), weights(plain))


def raise_interrupt(model: Any) -> None:
    raise KeyboardInterrupt


def test_final_is_the_average(tmp_path: Path) -> None:
    toy_run(tmp_path, toy_parts(network()), recipe())
    final = load_file(tmp_path / "final/model.safetensors")
    kept = checkpoint.of_step(tmp_path / "checkpoints", STEPS)
    assert equal(final, kept.average())
    assert not equal(final, kept.weights())
    said = json.loads((tmp_path / "environment.json").read_text(encoding="utf-8"))["final"]
    assert said == "the average of the trained weights, decay 0.5 per step"


def test_the_final_figures_are_those_of_final(tmp_path: Path) -> None:
    """The last evaluation in training sees the same average as the final one, of final/."""
    figures: list[float] = []

    def evaluate(model: Any, world: Any, final: bool) -> dict[str, float]:
        figures.append(float(model[0].weight.sum()))
        return {"validation_loss": figures[-1]}

    stop = {"every": 2, "early_stop": {"metric": "validation_loss", "patience": 9}}
    outcome = toy_run(tmp_path, toy_parts(network(), evaluate=evaluate), recipe(evaluate=stop))
    assert outcome.figures["validation_loss"] == figures[-1] == min(figures)
    final = load_file(tmp_path / "final/model.safetensors")
    assert float(final["0.weight"].sum()) == figures[-1]


def killed(out: Path, step: int) -> None:
    toy_run(out, replace(toy_parts(network()), callbacks=[die_after(step)]), recipe())


def test_killed_and_resumed_bit_identically(tmp_path: Path) -> None:
    toy_run(tmp_path / "whole", toy_parts(network()), recipe())
    assert child(killed, tmp_path / "run", 5) != 0
    toy_run(tmp_path / "run", toy_parts(network()), recipe())
    last = f"checkpoints/step-{STEPS:06d}"
    names = [f"{last}/{kind}-00000.safetensors" for kind in ("weights", "optimizer", "average")]
    for file in ("final/model.safetensors", *names):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("call", [14, 18], ids=["before the evaluation", "after it"])
def test_a_request_to_stop_leaves_no_weights_half_exchanged(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation exchanges four tensors by calls 13 to 16, after the start and two updates, and 17 to 20."""
    done = 0

    def signalled(tensor: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if done == call:
            signal.raise_signal(signal.SIGTERM)
        return local(tensor)

    blocks = {"evaluate": {"every": 2}}
    monkeypatch.setattr(average, "local", signalled)
    with pytest.raises(Preempted):
        toy_run(tmp_path / "run", toy_parts(network()), recipe(**blocks))
    for name in ("run", "whole"):
        toy_run(tmp_path / name, toy_parts(network()), recipe(**blocks))
    final = [load_file(tmp_path / name / "final/model.safetensors") for name in ("run", "whole")]
    assert equal(*final)


def test_another_decay_is_another_run_unless_it_is_allowed(tmp_path: Path) -> None:
    """Allowed where there was none, the average begins with the weights of the checkpoint."""

    def stop(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    parts = toy_parts(network(), identity={"optim": {"ema": None}}, callbacks=[Callbacks(on_step=stop)])
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path, parts, recipe(None))
    again = toy_parts(network(), identity={"optim": {"ema": DECAY}})
    with pytest.raises(BadInput, match=r"optim\.ema was absent, is 0\.5"):
        toy_run(tmp_path, again, recipe())
    toy_run(tmp_path, again, recipe(), allow_change=True)
    kept = checkpoint.of_step(tmp_path / "checkpoints", STEPS)
    assert kept.state["engine"]["averaged"] == STEPS - 4  # the last checkpoint before was that of step 4
    assert equal(load_file(tmp_path / "final/model.safetensors"), kept.average())
