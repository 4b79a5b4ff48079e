"""`plan` of whole recipes: every switch is known to it, and a card fits or is told what would make it fit."""

import re

import pytest
from command import qvl_sft

from qvl_core.cards import CARDS
from qvl_core.recipe.load import load
from qvl_sft.plan import GIB, predict
from qvl_sft.recipe import RECIPE, SFTRecipe

INT8 = "model.quantization=int8"
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")


def recipe(*changes: str) -> SFTRecipe:
    return load(RECIPE, "lora_8b", list(changes), package="qvl_sft")


def test_what_each_switch_saves_or_costs() -> None:
    none = predict(recipe("train.recompute=false"))
    recomputed = predict(recipe("train.recompute=[llm]"))
    assert recomputed.rows["activations"] < none.rows["activations"] / 3
    assert recomputed.flops > 1.3 * none.flops
    offloaded = predict(recipe("train.recompute=false", "speed.offload=true"))
    assert offloaded.peak < recomputed.peak
    assert offloaded.host == none.saved
    assert offloaded.flops == none.flops
    every = predict(recipe("train.recompute=false", "speed.label_rows=false"))
    logits = 8192 * 151_936
    assert every.peak - none.peak == pytest.approx(12 * logits, rel=0.05)  # facts: 13.9 GiB
    assert every.flops > none.flops
    cached = predict(recipe("train.recompute=false", "tune.merger.mode=frozen", "speed.cache_features=10"))
    assert cached.flops < 0.95 * none.flops


def test_what_weights_and_states_take() -> None:
    plain, nf4, int8 = (predict(recipe(*change)) for change in ([], ["model.quantization=nf4"], [INT8]))
    linears = plain.groups["llm"][1] - 36 * (2 * 4096 + 2 * 128) - 4096  # without the norms
    saved = plain.rows["frozen weights"] - nf4.rows["frozen weights"]
    assert saved == pytest.approx(linears * (2 - 0.5 - 1 / 64), rel=0.001)
    assert plain.rows["frozen weights"] - int8.rows["frozen weights"] == pytest.approx(linears, rel=0.001)
    assert plain.trainable == nf4.trainable == int8.trainable
    small = predict(recipe("optim.name=adamw_8bit"))
    assert small.rows["optimizer states"] < 0.27 * plain.rows["optimizer states"]
    assert predict(recipe("optim.ema=0.999")).rows["averaged weights"] == plain.rows["trained weights (fp32)"]


def test_what_is_sharded() -> None:
    rows = {}
    for strategy in STRATEGIES:
        changes = [f"parallel={{strategy: {strategy}, nproc: {1 if strategy == 'single' else 4}}}"]
        rows[strategy] = predict(load(RECIPE, "full_4b", changes, package="qvl_sft")).rows
    assert rows["ddp"]["optimizer states"] == rows["single"]["optimizer states"]
    quarter = {
        strategy: [
            name
            for name in ("optimizer states", "gradients", "trained weights (fp32)")
            if abs(4 * found[name] - rows["ddp"][name]) <= 4
        ]
        for strategy, found in rows.items()
    }
    assert quarter == {
        "single": [],
        "ddp": [],
        "zero1": ["optimizer states"],
        "zero2": ["optimizer states", "gradients"],
        "zero3": ["optimizer states", "gradients", "trained weights (fp32)"],
        "fsdp2": ["optimizer states", "gradients", "trained weights (fp32)"],
    }


def test_a_card_that_fits_and_one_that_does_not() -> None:
    done = qvl_sft("plan", "lora_8b", "--gpu", "H200")
    assert done.code == 0, done.err
    assert "H200: " in done.out
    assert "it fits." in done.out
    assert re.search(r"lm_head\s+│ frozen", done.out)
    done = qvl_sft("plan", "lora_8b", "--gpu", "3090")
    said = " ".join(done.out.split())
    assert "it does not fit" in said
    (quantised,) = re.findall(r"model.quantization: nf4 \(([\d.]+) GiB\)", said)
    assert float(quantised) == pytest.approx(predict(recipe("model.quantization=nf4")).needed / GIB, abs=0.05)
    assert "parallel: {strategy: fsdp2, nproc: 4}" in said
    fast, slow = (predict(recipe(), CARDS[name]).floor_seconds for name in ("h100", "a100"))
    assert slow == pytest.approx(fast * 989 / 312)


def test_an_unknown_card() -> None:
    done = qvl_sft("plan", "lora_8b", "--gpu", "h1000")
    assert done.code == 2
    assert "--gpu h1000: is not known; did you mean h100?" in done.err
