"""When memory does not suffice: the knobs that are not turned yet, by the plan's own figures."""

import re

import pytest

from qvl_core.cards import card
from qvl_core.qwen3vl import quantize
from qvl_core.qwen3vl.knobs import needed_by
from qvl_core.qwen3vl.plan import GIB
from qvl_core.qwen3vl.planning import verdict
from qvl_core.recipe.load import load
from qvl_sft.plan import advice, predict
from qvl_sft.recipe import RECIPE, SFTRecipe


def recipe(*changes: str) -> SFTRecipe:
    return load(RECIPE, "lora_2b", list(changes), package="qvl_sft")


def gib(given: SFTRecipe) -> float:
    """What a card has to have for it."""
    planned = predict(given)
    return (planned.peak + planned.reserve) / GIB


def test_the_most_effective_knob_first_with_its_memory() -> None:
    given = recipe("train.recompute=false", "batch.micro=2", "batch.tokens=32768")
    said = advice(given)
    needed = gib(given)
    assert said.startswith(f"by the plan a step needs {needed:.1f} GiB: set speed.offload: true (")
    assert f": {needed:.1f} of " in verdict(predict(given), card("4090"), str)  # one figure in both
    figures = [float(figure) for figure in re.findall(r"([0-9.]+) GiB\)", said)]
    assert figures == sorted(figures)
    assert figures[-1] <= 0.9 * needed + 0.05  # what saves less is not worth a turn
    turned = recipe("train.recompute=true", "batch.micro=2", "batch.tokens=32768")
    assert f"train.recompute: true ({gib(turned):.1f} GiB)" in said
    assert "batch.micro: 1 (" in said


def test_a_knob_that_is_turned_is_not_named() -> None:
    said = advice(recipe("train.recompute=true", "batch.micro=1"))
    assert "train.recompute" not in said
    assert "batch.micro" not in said
    assert "set model.quantization" in said


def test_shorter_rows_are_advised_only_where_a_longer_sample_does_not_end_the_run() -> None:
    given = ("train.recompute=true", "batch={tokens: 32768, max_length: 8192, micro: 1, too_long: %s}")
    assert "batch.max_length: 4096 (" in advice(recipe(given[0], given[1] % "drop"))
    assert "max_length" not in advice(recipe(given[0], given[1] % "error"))


def test_what_excludes_one_another_is_not_named() -> None:
    shared = advice(recipe("parallel={strategy: zero3, nproc: 2}"))
    assert "quantization" not in shared
    assert "adamw_8bit" not in shared
    assert "fsdp2" not in advice(recipe("model.quantization=nf4"))


def test_a_knob_that_cannot_be_turned_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """DoRA needs weights in full, and not every machine has the library for fewer bits."""
    assert needed_by(recipe("model.quantization=nf4"), predict)
    assert needed_by(recipe("model.quantization=nf4", "tune.llm.dora=true"), predict) is None
    monkeypatch.setitem(quantize.LIBRARIES, "nf4", "no_such_library")
    assert needed_by(recipe("model.quantization=nf4"), predict) is None
    assert predict(recipe("model.quantization=nf4")).peak  # a plan is made on any machine
