"""The plan: exact counts of the released models, and bytes against a real step of the tiny one on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from drawing_verbs import qvl_metaquery
from sketches import drawn, written
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.lora import apply_tune, parameter_groups
from qvl_core.qwen3vl.tiny import tiny as tiny_mllm
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.testing import kept
from qvl_core.training.optim import Optimizer
from qvl_core.training.world import processes
from qvl_data.sources import mixtures
from qvl_metaquery import plan as planning
from qvl_metaquery.batch import DrawingBatch, collation
from qvl_metaquery.build import base_of, drawing_samples, open_parts, operations, recompute
from qvl_metaquery.connector import Connector
from qvl_metaquery.counting import Work, count
from qvl_metaquery.loss import drawing_loss
from qvl_metaquery.model import GROUPS
from qvl_metaquery.plan import DrawingPlan, advice, predict
from qvl_metaquery.recipe import RECIPE, MetaQueryRecipe
from qvl_metaquery.released import shapes
from qvl_metaquery.tiny import tiny

BILLION = 1e9


def of(*overrides: str, name: str = "tiny") -> MetaQueryRecipe:
    return load(RECIPE, name, ["data={train: none}", *overrides], "qvl_metaquery")


def size(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


# Released shapes


@pytest.mark.parametrize(("width", "billions"), [(2048, 1.621), (2560, 2.528), (4096, 6.458)])
def test_parameters_of_the_connector(width: int, billions: float) -> None:
    with torch.device("meta"):
        assert size(Connector(width, 2304, 24)) / BILLION == pytest.approx(billions, abs=0.0005)


def test_parameters_of_sana_and_of_its_autoencoder() -> None:
    large, coder = shapes(of("model.name=Qwen/Qwen3-VL-2B-Instruct", "sana.name=someone/Sana_1600M_512px_diffusers"))
    assert size(large.transformer) / BILLION == pytest.approx(1.604, abs=0.0005)
    assert size(large.mllm) / BILLION == pytest.approx(2.128, abs=0.0005)
    assert size(coder) / 1e6 == pytest.approx(312.3, abs=0.05)
    assert coder is not None
    assert size(coder.encoder) / 1e6 == pytest.approx(153.0, abs=0.05)
    small, _ = shapes(of("sana.name=someone/Sana_600M_512px_diffusers"))
    assert size(small.transformer) / 1e6 == pytest.approx(592, abs=1)


def test_shapes_of_a_folder_are_its_own(tmp_path: Path) -> None:
    tiny(tmp_path / "base")
    model, coder = shapes(of(f"model.name={tmp_path / 'base/qwen'}", f"sana.name={tmp_path / 'base/sana'}"))
    named, without = shapes(of())
    assert coder is without is None
    assert [(name, p.shape) for name, p in model.named_parameters()] == [
        (name, p.shape) for name, p in named.named_parameters()
    ]


def test_an_unknown_sana_is_said_to_be() -> None:
    with pytest.raises(BadInput, match=r"sana\.name: shapes of 'someone/Sona' are not known; name a folder, or"):
        predict(of("sana.name=someone/Sona"))


# The tiny model, really


HOW: dict[str, tuple[str, ...]] = {
    "all": (),
    "frozen": ("tune.transformer.mode=frozen",),
    "recompute": ("train.recompute=true",),
    "narrow": ("connector.width=64",),
    "ema, 8 bits": ("optim.ema=0.9", "optim.name=adamw_8bit"),
    "nf4": ("model.quantization=nf4",),
}


class Stepped(NamedTuple):
    """A recipe, and what a real step of it held."""

    recipe: MetaQueryRecipe
    model: nn.Module
    batch: DrawingBatch
    saved: int
    gradients: int
    states: int


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Stepped]:
    """`step(*overrides)`: a step on four pictures with a prompt each."""
    folder = tmp_path_factory.mktemp("plan")
    tiny(folder / "base")
    data = written(folder / "train.parquet", [drawn(i, f"a {i}") for i in range(4)])
    parts = (
        f"model.name={folder / 'base/qwen'}",
        f"sana.name={folder / 'base/sana'}",
        "connector.layers=2",
        "train.precision=fp32",
    )

    def run(*changes: str) -> Stepped:
        recipe = load(RECIPE, "tiny", [*parts, f"data={{train: {data}}}", *FIXED, *changes], "qvl_metaquery")
        with processes(recipe.parallel) as world:
            opened = open_parts(base_of(recipe, RunFolder(folder), world), world)
        shape = opened.coder.latent_shape(recipe.flow.size)
        samples = drawing_samples(recipe, mixtures(recipe.data)["train"], opened.processor, shape)
        collate = collation(opened.processor, coded=False)
        batch = collate([samples.encode(position) for position in range(4)])
        model = opened.model.train()
        saved = kept(model, lambda: drawing_loss(model, batch, opened.coder).total)
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        optimizer = Optimizer(parameter_groups(model, recipe.tune, recipe.optim, GROUPS), recipe)
        optimizer.update(1.0, None, torch.tensor(1.0), torch.tensor(0.0))
        states = [value for state in optimizer._torch.state.values() for value in state.values()]
        return Stepped(recipe, model, batch, saved, gradients, sum(tensor.nbytes for tensor in states))

    return run


FIXED = ("batch.size=4", "flow.dropout=0", "queries.number=24")


@pytest.mark.parametrize("name", HOW)
def test_what_autograd_keeps(name: str, step: Callable[..., Stepped]) -> None:
    """Within 10 % is what is asked for; less than 1 % is what is found."""
    done = step(*HOW[name])
    model, _ = shapes(done.recipe)
    apply_tune(model, done.recipe.tune, seed=0, groups=GROUPS)
    recompute(model, bool(done.recipe.train.recompute))
    tokens = done.batch.prompts.input_ids.shape[1]
    counted = count(model, Work(4, tokens, (4, 4, 4)), half=False, device="cpu")
    assert sum(counted.saved.values()) == pytest.approx(done.saved, rel=0.02)
    assert all(size > 0 for size in counted.saved.values())


@pytest.mark.parametrize("name", HOW)
def test_bytes_after_a_real_step(name: str, step: Callable[..., Stepped]) -> None:
    done = step(*HOW[name])
    plan = predict(done.recipe, device="cpu")
    trained = [p for p in done.model.parameters() if p.requires_grad]
    assert plan.rows["trained weights (fp32)"] == sum(p.nbytes for p in trained) == done.gradients
    assert plan.rows["optimizer states"] == done.states
    assert plan.rows.get("averaged weights", 0) == (done.gradients if "ema" in name else 0)
    assert plan.trainable == sum(p.numel() for p in trained)
    frozen = sum(p.nbytes for p in done.model.parameters() if not p.requires_grad)
    scales = plan.rows["frozen weights"] - frozen
    assert 0 < scales < frozen / 10 if name == "nf4" else scales == 0


# What a recipe of a released model needs


LARGE = "qwen3vl2b_sana"


@pytest.fixture(scope="module")
def large() -> Callable[..., DrawingPlan]:
    return lambda *overrides: predict(of("flow.latents=none", *overrides, name=LARGE))


def test_strategies_share_what_they_say(large: Callable[..., DrawingPlan]) -> None:
    strategies = ("ddp", "zero1", "zero2", "fsdp2")
    plans = {name: large(f"parallel.strategy={name}", "train.recompute=false").rows for name in strategies}
    whole = plans["ddp"]
    for name, shared in (
        ("zero1", {"optimizer states"}),
        ("zero2", {"optimizer states", "gradients"}),
        ("fsdp2", {"optimizer states", "gradients", "trained weights (fp32)", "frozen weights"}),
    ):
        for row in ("optimizer states", "gradients", "trained weights (fp32)", "frozen weights"):
            parts = 4 if row in shared else 1
            assert plans[name][row] == pytest.approx(whole[row] / parts, rel=1e-6), (name, row)
    assert plans["fsdp2"]["gathered weights"] > 0


def test_a_shared_model_is_whole_while_it_draws(large: Callable[..., DrawingPlan]) -> None:
    drawn, alone = large(), large("parallel.strategy=ddp")
    assert "Most is needed while previews are drawn." in drawn.caption
    assert drawn.rows["gathered weights"] == 2 * drawn.parameters
    assert drawn.rows["gradients"] == 0
    assert alone.moment == "as the backward begins"
    assert "gathered weights" not in alone.rows
    assert drawn.peak == sum(drawn.rows.values())


def test_each_knob_saves(large: Callable[..., DrawingPlan]) -> None:
    usual = large()
    for change in ("tune.transformer.mode=frozen", "connector.width=1024", "batch.micro=8", "queries.number=64"):
        assert large(change).needed < usual.needed, change
    without = large("train.recompute=false")
    assert without.rows["activations"] > 4 * usual.rows["activations"]
    assert without.flops < usual.flops
    assert usual.step == 4 * usual.pictures * 4  # four devices, four forwards each


def test_the_verb_says_whether_it_fits() -> None:
    fits = qvl_metaquery("plan", LARGE, "--gpu", "a100-40")
    assert fits.code == 0, fits.err
    assert "it fits" in fits.out
    small = qvl_metaquery("plan", LARGE, "parallel={strategy: single}", "--gpu", "a100-40")
    assert "does not fit" in " ".join(small.out.split())
    assert "fsdp2" in small.out


# Operations


def test_operations_of_a_step_are_those_of_its_pictures_and_of_their_prompts(large: Callable[..., DrawingPlan]) -> None:
    """As `benchmarks/metaquery.py` counts them operation by operation."""
    plan = large("queries.number=64", "queries.caption_tokens=384", "train.recompute=false", "parallel.strategy=ddp")
    assert plan.prompt == 448
    assert plan.flops == plan.step / plan.devices * (plan.flops_per_picture + 448 * plan.flops_per_token)
    found = json.loads((Path(__file__).parents[3] / "benchmarks/results/metaquery.json").read_text("utf-8"))
    counted = found["training"][0]
    assert (counted["prompt_tokens"], counted["queries"]) == (448, 64)
    a_picture = plan.flops_per_picture + 448 * plan.flops_per_token
    assert a_picture == pytest.approx(counted["whole_step"]["two_phases"], rel=0.02)


def test_a_sana_is_counted_by_its_folder(tmp_path: Path) -> None:
    tiny(tmp_path / "base")
    given = of("sana.name=someone/unknown", "flow.latents=none")
    planned = predict(of("flow.latents=none"))
    assert operations(given, tmp_path / "base/sana") == (planned.flops_per_token, planned.flops_per_picture)


def test_experts_are_counted_where_there_is_no_gpu(tmp_path: Path) -> None:
    tiny(tmp_path / "base")
    tiny_mllm(tmp_path / "experts", experts=4)
    found = operations(of(f"model.name={tmp_path / 'experts'}"), tmp_path / "base/sana")
    assert min(found) > 0


# What to turn


TURNED: dict[str, Callable[[MetaQueryRecipe], bool]] = {
    "flow.latents: FOLDER of `qvl-metaquery encode`": lambda recipe: recipe.flow.latents is not None,
    "connector.width: 1024": lambda recipe: recipe.connector.width == 1024,
    "tune.transformer.mode: frozen": lambda recipe: recipe.tune["transformer"].mode == "frozen",
}


@pytest.mark.parametrize("words", TURNED)
def test_a_knob_of_drawing_is_named_where_it_saves(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(recipe: MetaQueryRecipe) -> Any:
        return SimpleNamespace(needed=2**30 // (2 if TURNED[words](recipe) else 1))

    monkeypatch.setattr(planning, "predict", half)
    assert advice(of()) == f"by the plan a step needs 1.0 GiB: set {words} (0.5 GiB)"


@pytest.mark.parametrize(("task", "key"), [("t2i", "queries.caption_tokens"), ("edit", "queries.image_tokens")])
def test_where_no_knob_saves_a_key_of_drawing_is_named(task: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "predict", lambda recipe: SimpleNamespace(needed=2**30))
    given = of(f"flow.task={task}", "model.init_from=somewhere")
    assert advice(given).endswith(f"1.0 GiB: lower {key} or flow.size, or take a larger device")


@pytest.mark.slow
def test_the_width_of_an_earlier_stage_is_not_to_be_turned() -> None:
    one = "parallel={strategy: single}"
    assert "GiB: set connector.width: 1024 (" in advice(of(one, name="qwen3vl8b_sana"))
    later = advice(of(one, name="qwen3vl8b_sana_inst"))
    assert "width" not in later
    assert "tune.transformer.mode: frozen (" in later
