"""The plan: exact counts of the released models, bytes against a real step of the tiny one, and the table of estimates
that was made before."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from editing_verbs import qvl_edit
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.lora import apply_tune, parameter_groups
from qvl_core.recipe.load import load
from qvl_core.recipe.shipped import shipped
from qvl_core.testing import kept
from qvl_core.training.operations import counting as counting_operations
from qvl_core.training.optim import Optimizer
from qvl_edit import counting
from qvl_edit.counting import Work, _forward, count_saved
from qvl_edit.cut import Bucket
from qvl_edit.groups import groups
from qvl_edit.model import Given, OneStream, TwoStreams
from qvl_edit.packing import Grid
from qvl_edit.plan import EditPlan, operations, predict
from qvl_edit.recipe import RECIPE, EditRecipe
from qvl_edit.released import configs, shapes
from qvl_edit.tiny import tiny_transformer
from qvl_edit.tiny_21 import tiny_parts_21

GB = 1e9
WHOLE = 20_430_401_088
BUCKET = Bucket((32, 32), ((32, 32),))


def of(*overrides: str, name: str = "lora_2509") -> EditRecipe:
    return load(RECIPE, name, list(overrides), "qvl_edit")


@pytest.fixture(scope="module")
def planned() -> Callable[..., EditPlan]:
    return cache(lambda *overrides, name="lora_2509": predict(of(*overrides, name=name)))


# Released shapes


def test_parameters_are_those_of_the_released_models(planned: Callable[..., EditPlan]) -> None:
    recipe = of()
    transformer, vae = shapes(recipe.model, configs(recipe.model))
    assert sum(p.numel() for p in transformer.parameters()) == WHOLE
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531
    assert len(list(transformer.parameters())) == 1933
    assert planned().parameters == WHOLE
    assert planned().trainable == 46_989_312
    assert planned(name="full_2509").trainable == 20_336_007_616


@pytest.mark.parametrize(
    ("overrides", "tokens", "gigabytes"),
    [
        (("pictures.size=512",), 2275, 1.3),
        (("pictures.size=512", "mixture.sources=3=1"), 4726, 2.7),
        ((), 8419, 4.9),
        (("mixture.sources=3=1",), 17014, 9.8),
    ],
)
def test_tokens_and_activations_of_the_facts(
    overrides: tuple[str, ...], tokens: int, gigabytes: float, planned: Callable[..., EditPlan]
) -> None:
    """Activations were an estimate: to 20 %."""
    plan = planned(*overrides)
    assert plan.tokens == pytest.approx(tokens, rel=0.005)
    assert plan.rows["activations"] / GB == pytest.approx(gigabytes, rel=0.2)


@pytest.mark.parametrize(
    ("name", "overrides", "low", "high"),
    [
        ("lora_2509", (), 47, 51),
        ("lora_2509", ("model.quantization=nf4",), 18, 21),
        ("lora_2509", ("model.quantization=int8",), 27, 30),
        ("full_2509", (), 48, 53),
        ("full_2509", ("optim.ema=0.999",), 60, 63),
    ],
)
def test_memory_of_the_facts(
    name: str, overrides: tuple[str, ...], low: float, high: float, planned: Callable[..., EditPlan]
) -> None:
    """They were estimates: to 12 %."""
    assert 0.88 * low <= planned(*overrides, name=name).learning / GB <= 1.12 * high


def test_drawing_needs_no_more_than_a_step(planned: Callable[..., EditPlan]) -> None:
    """Of a model that is shared block by block, and of one that is learned by adapters."""
    for changes in ((), ("parallel.strategy=zero3",)):
        plan = planned(*changes, name="full_2509")
        assert plan.learning == plan.peak < 48 * GB
        assert plan.rows["gathered weights"] < 3 * GB
    assert planned().learning == planned().peak
    assert planned("stored.latents=x").flops < planned().flops


def test_pictures_that_are_drawn_together(planned: Callable[..., EditPlan]) -> None:
    """On one device, which steps of small pictures leave room."""
    small = ("pictures.size=256", "batch={size: 1, micro: 1}", "optim.name=adamw_8bit", "train.recompute=true")
    drawing = planned(*small)
    assert "Most is needed while previews are drawn." in drawing.caption
    assert f"Steps need {drawing.learning / 2**30:.1f} GiB." in drawing.caption
    without = planned(*small, "sampling.preview=0")
    assert without.peak == without.learning == drawing.learning


def test_operations_are_those_of_the_matrices(planned: Callable[..., EditPlan]) -> None:
    """A block's pictures pass 113 M parameters, four projections and the MLP, and its text as many others. Frozen
    weights have no gradients: two passes. The gradients of attention are five products, the scores once more, to the
    two of its forward."""
    plan, width, layers = planned("batch.size=1", "stored.embeddings=x", "train.recompute=false"), 3072, 60
    passed = 2 * (4 * width**2 + 8 * width**2) * layers * plan.tokens
    attention = 4 * plan.tokens**2 * width * layers
    coding = plan.flops - 2 * passed - 3.5 * attention
    assert 0 < coding / plan.flops < 0.06  # the autoencoder, adapters, and what is made of levels
    assert plan.floor_seconds == pytest.approx(plan.flops / 790e12)


def test_blocks_that_wait_are_in_the_hosts_memory(planned: Callable[..., EditPlan]) -> None:
    here, away = (planned("stored.latents=x", f"speed.offload_blocks={count}") for count in (0, 45))
    waits = 45 * 2 * 339_831_296  # in bf16
    assert away.waiting == waits
    assert away.rows["frozen weights"] == here.rows["frozen weights"] - waits + 3 * waits // 45
    assert away.expected_seconds[1] >= 2 * 4 * waits / 12e9  # four forwards and backwards, by a slow bus
    assert "wait in the host's memory" in away.forward
    with pytest.raises(BadInput, match="there are 60 blocks, and 61 cannot wait"):
        planned("speed.offload_blocks=61")


# The tiny transformer, really


def real(tune: str, samples: int, recompute: bool, one_stream: bool = False) -> tuple[EditRecipe, Any]:
    recipe = of(f"tune={tune}", f"batch={{size: {samples}}}", f"train.recompute={recompute}", name="tiny")
    torch.manual_seed(0)
    transformer = tiny_parts_21("patches")["transformer"] if one_stream else tiny_transformer(12, False)
    apply_tune(transformer, recipe.tune, 0, recipe.optim, groups(recipe.tune, len(transformer.transformer_blocks)))
    if recompute:
        transformer.enable_gradient_checkpointing()
    return recipe, transformer.train()


@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("tune", ["{transformer: {mode: full}}", "{attn: {mode: lora, rank: 4}}"])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_what_autograd_keeps(
    tune: str, samples: int, recompute: bool, one_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = OneStream(Grid(2, 1), (6,)) if one_stream else TwoStreams(Grid(2))
    work = Work(samples, 40, BUCKET, 16 if one_stream else 12, call)
    _, transformer = real(tune, samples, recompute, one_stream)
    with monkeypatch.context() as patched:  # its own forward
        levels = torch.rand(samples)

        def own(model: Any, call: OneStream, noisy: Tensor, sources: Sequence[Tensor], told: Tensor) -> Tensor:
            return call(model, noisy, levels, Given(sources, told, None, BUCKET))

        patched.setattr(counting, "forward_21", own)
        found = kept(transformer, partial(_forward, transformer, work, torch.float32))
    _, other = real(tune, samples, recompute, one_stream)
    assert count_saved(other.to("meta"), work, half=False, device="cpu") == pytest.approx(found, rel=0.02)


def test_bytes_after_a_real_step() -> None:
    recipe, transformer = real("{attn: {mode: lora, rank: 4}}", 1, recompute=False)
    plan = predict(recipe, device="cpu")
    _forward(transformer, Work(1, 40, BUCKET, 12, TwoStreams(Grid(2))), torch.float32).backward()
    layers = len(transformer.transformer_blocks)
    optimizer = Optimizer(parameter_groups(transformer, recipe.tune, recipe.optim, groups(recipe.tune, layers)), recipe)
    optimizer.update(1.0, None, torch.tensor(1.0), torch.tensor(0.0))
    states = [value for state in optimizer._torch.state.values() for value in state.values()]
    trained = [p for p in transformer.parameters() if p.requires_grad]
    assert plan.rows["trained weights (fp32)"] == sum(p.nbytes for p in trained)
    assert plan.rows["optimizer states"] == sum(tensor.nbytes for tensor in states)
    assert plan.trainable == sum(p.numel() for p in trained)
    assert plan.rows["frozen weights"] * 2 == sum(p.nbytes for p in transformer.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("tune", "recompute"), [("{transformer: {mode: full}}", False), ("{attn: {mode: lora, rank: 4}}", True)]
)
def test_operations_are_those_of_a_real_step(tune: str, recompute: bool, checkpoint: Callable[..., Path]) -> None:
    """For MFU: of one number of sources as torch counts them in a real step, of several so in the mean."""
    recipe, transformer = real(tune, 1, recompute)
    model = recipe.model.model_copy(update={"name": str(checkpoint("edit-plus", "patches"))})
    recipe = recipe.model_copy(update={"model": model})
    shares, found, expected = {0: 0.5, 1: 0.2, 3: 0.3}, {}, {}
    of_token, of_sample = operations(recipe, shares)
    for sources in shares:
        bucket = Bucket((40, 40), ((40, 40),) * sources)
        work = Work(1, 25 + sources * 10, bucket, 12, TwoStreams(Grid(2)))
        with counting_operations() as counter:
            _forward(transformer, work, torch.float32).backward()
        found[sources], seen = counter.get_total_flops(), work.tokens - work.text
        expected[sources] = of_token * seen + of_sample
    mean, line = (sum(shares[one] * of[one] for one in shares) for of in (found, expected))
    assert line == pytest.approx(mean, rel=1e-3)
    alone, none = operations(recipe, {3: 1.0})
    assert (alone * seen, none) == (pytest.approx(found[3], rel=1e-3), 0)
    assert expected[0] < expected[1] < expected[3]


# What recipes cost, and what to turn


@pytest.mark.parametrize("name", [recipe.name for recipe in shipped("qvl_edit") if not recipe.name.startswith("tiny")])
def test_the_head_of_a_recipe_says_what_it_costs(name: str, planned: Callable[..., EditPlan]) -> None:
    (text,) = (recipe.text for recipe in shipped("qvl_edit") if recipe.name == name)
    head = " ".join(line.removeprefix("#").strip() for line in text.split("version:")[0].splitlines())
    plan = planned(name=name)
    assert f"{plan.needed / 2**30:.0f} GiB" in head
    assert f"{plan.expected_seconds[0]:.1f} to {plan.expected_seconds[1]:.1f} s a step" in head


def test_knobs_save(planned: Callable[..., EditPlan]) -> None:
    usual = planned().needed
    for change in ("pictures.size=512", "model.quantization=nf4", "mixture.sources=0=1"):
        assert planned(change).needed < usual
    without = planned("train.recompute=false")
    assert without.needed > usual + 50 * GB
    assert without.flops < planned().flops
    shared = planned("parallel={strategy: fsdp2, nproc: 4}")
    assert shared.rows["frozen weights"] == pytest.approx(planned().rows["frozen weights"] / 4, rel=1e-6)


def test_the_verb_says_whether_it_fits() -> None:
    fits = qvl_edit("plan", "lora_2509", "--gpu", "a100")
    assert (fits.code, fits.err) == (0, "")
    assert "it fits" in fits.out
    small = " ".join(qvl_edit("plan", "lora_2509", "--gpu", "a100-40").out.split())
    assert "does not fit" in small
    assert "model.quantization: nf4" in small
