"""The learning rate as a function of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl_core.recipe.blocks import Schedule
from qvl_core.training.schedule import lr_factor, warmup_steps


def factors(steps: int, **schedule: object) -> list[float]:
    return [lr_factor(Schedule.model_validate(schedule), step, steps) for step in range(steps)]


def test_shapes() -> None:
    assert factors(4, name="constant") == [1, 1, 1, 1]
    assert factors(4, name="linear") == [1, 0.75, 0.5, 0.25]
    assert factors(4, name="linear", min_factor=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert factors(4, name="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert factors(4, name="cosine", min_factor=0.1) == pytest.approx([1, 0.868198, 0.55, 0.231802], abs=1e-6)


def test_warmup_by_steps_and_by_ratio() -> None:
    assert factors(6, name="constant", warmup=3) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert factors(6, name="constant", warmup=0.5) == factors(6, name="constant", warmup=3)
    assert factors(6, name="linear", warmup=2) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert warmup_steps(Schedule(warmup=0.03), 1000) == 30
    assert warmup_steps(Schedule(warmup=1), 1000) == 1


def test_warmup_may_last_longer_than_the_run() -> None:
    assert factors(3, warmup=10) == pytest.approx([0.1, 0.2, 0.3])


@given(
    name=st.sampled_from(["constant", "linear", "cosine"]),
    steps=st.integers(1, 300),
    warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 400)),
    least=st.floats(0, 1),
)
def test_rises_then_falls_and_never_wastes_a_step(name: str, steps: int, warmup: float, least: float) -> None:
    schedule = Schedule.model_validate({"name": name, "warmup": warmup, "min_factor": least})
    values, warm = [lr_factor(schedule, step, steps) for step in range(steps)], warmup_steps(schedule, steps)
    assert all(0 < value <= 1 for value in values)
    assert values[:warm] == sorted(values[:warm])
    assert values[warm:] == sorted(values[warm:], reverse=True)
    assert all(value >= least - 1e-12 for value in values[warm:])
    if warm < steps:
        assert values[warm] == 1
