"""A run whose loss leaves its running mean far behind stops, and names the last checkpoint before that."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from harness import child, die_after, toy_run
from toy import ToyBatch, ToyBatches, network, toy_parts, toy_recipe

from qvl_core.errors import QVLError
from qvl_core.recipe.blocks import Recipe
from qvl_core.run import RunFolder
from qvl_core.training.divergence import EARLY, Running, diverged
from qvl_core.training.parts import Micro, Parts

LOUD, STEPS, EVERY = 26, 32, 5


def test_the_mean_is_even_at_first_and_of_the_last_hundred_later() -> None:
    running = Running()
    for loss in (1.0, 2.0, 6.0):
        running = running.then(loss)
    assert running == Running(3.0, 3)
    late = Running(3.0, 500).then(103.0)
    assert (late.mean, late.steps) == (pytest.approx(4.0), 501)


@pytest.mark.parametrize(
    ("steps", "loss", "expected"),
    [(EARLY - 1, 1e9, False), (EARLY, 20.1, True), (EARLY, 20.0, False), (500, 20.1, True)],
)
def test_a_loss_is_too_far_above_the_mean_of_enough_steps(steps: int, loss: float, expected: bool) -> None:
    assert diverged(Running(1.0, steps), loss, 20.0) is expected


@dataclass(frozen=True)
class LoudBatches(ToyBatches):
    """From step LOUD on what is to be predicted is a thousand times as large."""

    def _micro(self, step: int, slots: list[int]) -> Micro:
        micro = super()._micro(step, slots)
        batch: ToyBatch = micro.batch
        return replace(micro, batch=ToyBatch(batch.x, batch.y * 1000, batch.weight)) if step >= LOUD else micro


def loud(factor: float | None) -> Recipe:
    train = {"steps": STEPS, "seed": 3, "divergence": factor}
    return toy_recipe(train=train, checkpoint={"every": EVERY}, log={"every": 1})


def parts() -> Parts:
    return toy_parts(network(), LoudBatches(seed=3), steps=STEPS)


def killed(out: Path) -> None:
    toy_run(out, replace(parts(), callbacks=(die_after(LOUD - 2),)), loud(20.0))


@pytest.mark.parametrize("before", [False, True], ids=["whole", "resumed"])
def test_a_run_that_diverges_stops_and_names_the_last_good_checkpoint(before: bool, tmp_path: Path) -> None:
    if before:
        assert child(killed, tmp_path) != 0
    with pytest.raises(QVLError) as caught:
        toy_run(tmp_path, parts(), loud(20.0))
    assert caught.value.exit_code == 1
    assert f"step {LOUD + 1}: the loss " in str(caught.value)
    assert "is over 20 times its running mean" in str(caught.value)
    good = f"step-{LOUD // EVERY * EVERY:06d}"
    assert f"{good} is the last good checkpoint" in str(caught.value)
    assert max(path.name for path in RunFolder(tmp_path).checkpoints.iterdir()) == good
    assert not RunFolder(tmp_path).final.exists()


def test_it_is_not_looked_at_unless_it_is_asked_for(tmp_path: Path) -> None:
    toy_run(tmp_path, parts(), loud(None))
    assert RunFolder(tmp_path).final.is_dir()
