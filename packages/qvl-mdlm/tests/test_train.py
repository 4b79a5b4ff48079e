"""Training: the same bits after a kill, the same numbers however it is dealt, and nothing changed but what is tuned."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import invoking
import pytest
import torch
from asking import digits, samples, talk
from safetensors.torch import load_file

import qvl_mdlm.build
from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.lora import load_adapter
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Model
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training.parts import Callbacks, Parts
from qvl_data.convert import write_samples
from qvl_mdlm import open_masked, options, recipe, train
from qvl_mdlm.build import sampling_of
from qvl_mdlm.model import Qwen3VLForMaskedLM, Qwen3VLMoeForMaskedLM
from qvl_mdlm.plan import predict
from qvl_mdlm.recipe import RECIPE
from qvl_mdlm.sampling import Sampling
from qvl_mdlm.settings import SETTINGS

STEPS = 4
LORA = "tune={llm: {mode: lora, rank: 4, alpha: 8}}"
BLOCKS = ("diffusion.attention=block", "diffusion.block_size=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats with and without pictures, of one turn and of several."""
    folder = tmp_path_factory.mktemp("chats")
    write_samples([*digits(6, "train"), *samples()], folder / "train.parquet")
    return folder


@pytest.fixture
def learn(base: Path, data: Path, tmp_path: Path) -> Callable[..., Path]:
    """`learn("name", *overrides)`: a short run of the recipe `tiny`, in its folder."""

    def run(name: str, *changes: str) -> Path:
        short = [f"train.steps={STEPS}", "schedule.warmup=1", "batch.size=4", "checkpoint.every=2", "log.every=1"]
        given = [f"model.name={base}", f"data={{train: {data}}}", "evaluate.every=null", *short, *changes]
        train(load(RECIPE, "tiny", given, "qvl_mdlm"), tmp_path / name)
        return tmp_path / name

    return run


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in RunFolder(run).read_metrics() if "loss" in record]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "final").glob("*.safetensors")
    return load_file(file)


def difference(one: Path, other: Path) -> float:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


# The same again


class _Killed(BaseException):
    """Nothing may catch it."""


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_ends_with_the_same_bits(
    step: int, learn: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ("tune={llm: {mode: lora, rank: 4, alpha: 8, dropout: 0.2}, merger: {mode: full}}", "diffusion.pad_to=8")
    whole = learn("whole", *how)

    def die(done: int) -> None:
        if done == step:
            raise _Killed

    build = qvl_mdlm.build.build

    def watched(*arguments: Any) -> Parts:
        return replace(build(*arguments), callbacks=(Callbacks(on_step=die),))

    with monkeypatch.context() as patch:
        patch.setattr(qvl_mdlm.build, "build", watched)
        with pytest.raises(_Killed):
            learn("killed", *how)
    again = learn("killed", *how)
    assert losses(again) == losses(whole)
    assert len(losses(whole)) == STEPS
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


@pytest.mark.parametrize("how", [(), BLOCKS, ("diffusion.complementary=true",)], ids=["full", "block", "pairs"])
def test_micro_batches_change_nothing(how: tuple[str, ...], learn: Callable[..., Path]) -> None:
    one, two = learn("one", LORA, "optim.eps=1e-4", *how), learn("two", LORA, "optim.eps=1e-4", "batch.micro=2", *how)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert difference(one, two) < 1e-5


EXPERTS = "tune={llm: {mode: full}, merger: {mode: full}}"
SHARDED = [pytest.mark.slow, pytest.mark.deepspeed, pytest.mark.skipif(not find_spec("deepspeed"), reason="none there")]
SPREAD = [
    pytest.param("ddp", (LORA,), id="full"),
    pytest.param("ddp", (LORA, *BLOCKS), marks=pytest.mark.slow, id="block"),
    pytest.param("ddp", (LORA, "diffusion.mask_row=true"), marks=pytest.mark.slow, id="mask row"),
    pytest.param("fsdp2", (LORA,), marks=pytest.mark.slow, id="fsdp2"),
    pytest.param("fsdp2", (EXPERTS, "model.name={experts}"), marks=pytest.mark.slow, id="fsdp2, experts"),
    pytest.param("zero2", (LORA,), marks=SHARDED, id="zero2"),
]


def test_experts_learn_and_open_again(learn: Callable[..., Path], experts: Path) -> None:
    how = (f"model.name={experts}", EXPERTS, "optim.eps=1e-4")
    one, two = learn("one", *how), learn("two", *how, "batch.micro=2")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert difference(one, two) < 1e-5
    model, _ = open_masked(str(one))
    assert type(model) is Qwen3VLMoeForMaskedLM
    before = load_file(experts / "model.safetensors")
    changed = {name for name, value in weights(one).items() if not torch.equal(value, before[name])}
    assert any(".mlp.experts." in name for name in changed)
    assert not any(".visual.blocks." in name for name in changed)


@pytest.mark.distributed
@pytest.mark.parametrize(("strategy", "how"), SPREAD)
def test_two_processes_are_one(
    strategy: str, how: tuple[str, ...], learn: Callable[..., Path], experts: Path, tmp_path: Path
) -> None:
    one = learn("one", "optim.eps=1e-4", *(change.replace("{experts}", str(experts)) for change in how))
    command = [sys.executable, "-m", "qvl_mdlm", "train", str(one / "recipe.yaml"), "--nproc", "2"]
    command.append(f"parallel.strategy={strategy}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--out", str(tmp_path / "two")], env=environment, timeout=300)
    assert done.returncode == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-5)
    assert difference(one, tmp_path / "two") < 1e-5


STOP = "evaluate={every: 1, samples: 2, max_new_tokens: 4, early_stop: {metric: %s, mode: max, patience: 9}}"


@pytest.mark.parametrize(("metric", "forgotten"), [("validation_exact_match", True), ("validation_loss", False)])
def test_answers_that_are_written_otherwise_are_not_compared(
    metric: str, forgotten: bool, learn: Callable[..., Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = qvl_mdlm.build.build

    def die(done: int) -> None:
        if done == 3:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(qvl_mdlm.build, "build", lambda *given: replace(build(*given), callbacks=(Callbacks(die),)))
        with pytest.raises(_Killed):
            learn("run", f"data.validation={data / 'train.parquet'}", STOP % metric)
    run = learn("run", f"data.validation={data / 'train.parquet'}", STOP % metric, "sampling.steps=2")
    events = [record for record in RunFolder(run).read_metrics() if record.get("event") == "early_stop_changed"]
    assert len(events) == forgotten


def test_a_recipe_writes_as_the_options_of_the_command_line_do() -> None:
    shared = {name: option for name, option in options.OPTIONS.items() if name not in ("max_new_tokens", "seed")}
    properties = recipe.Sampling.model_json_schema()["properties"]
    assert shared.keys() == properties.keys()
    for name, (kind, default) in shared.items():
        (option,) = kind.__metadata__
        field = properties[name]
        assert (field["description"], field["default"] or None) == (option.help, default or None), name
        bounds = field.get("anyOf", [field])[0]
        assert (bounds.get("minimum"), bounds.get("maximum")) == (option.min, option.max), name
    written = sampling_of(load(RECIPE, "tiny", ["data.train=x"], "qvl_mdlm"))
    assert written == Sampling(max_new_tokens=8)


# What is changed and what is left behind


def test_only_what_is_tuned_changes(learn: Callable[..., Path], base: Path) -> None:
    run = learn("run", "tune={llm: {mode: full}}")
    before, after = load_file(base / "model.safetensors"), weights(run)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name].to(before[name].dtype))}
    assert changed == {name for name in before if name.startswith("model.language_model.") and "embed" not in name}
    model = Qwen3VLForMaskedLM.from_pretrained(run / "final")
    assert model.config.pattern == "full"


@pytest.mark.parametrize("how", [(), BLOCKS], ids=["full", "block"])
def test_an_adapter_says_how_its_base_attends(how: tuple[str, ...], learn: Callable[..., Path], base: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    run = learn("run", LORA, *how)
    assert (base / "model.safetensors").read_bytes() == before
    assert all(".lora_" in name for name in weights(run))
    settings = json.loads((run / "final" / SETTINGS).read_text(encoding="utf-8"))
    pattern, pad_to = settings.pop("pattern"), settings.pop("pad_to")
    assert (pattern, settings["block_size"], pad_to) == (("block", 4, 8) if how else ("full", None, 8))
    model = Qwen3VLForMaskedLM.from_pretrained(base, attention=pattern, **settings)
    load_adapter(model, run / "final")
    trained = weights(run)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert torch.equal(parameter, trained[f"base_model.model.{name.replace('.default', '')}"])
    left_to_right = load_model(Model(name=str(base)), precision="fp32", device="cpu")[0]
    with pytest.raises(
        BadInput, match="trained on a model that attends both ways and writes by denoising; use qvl-mdlm"
    ):
        load_adapter(left_to_right, run / "final")


@pytest.mark.parametrize("tied", [True, False])
def test_the_mask_tokens_row_is_trained_beside_lora(tied: bool, learn: Callable[..., Path], tmp_path: Path) -> None:
    start = tiny(tmp_path / "base", tied=tied)
    recipe = (LORA, f"model.name={start}", "diffusion.mask_row=true")
    run = learn("run", *recipe)
    model = Qwen3VLForMaskedLM.from_pretrained(start)
    mask = model.config.mask_token_id
    before = model.get_input_embeddings().weight[mask].detach().clone()
    found = {name: value for name, value in weights(run).items() if ".lora_" not in name}
    (row,) = found.values()
    assert row.shape == (1, len(before))
    assert not torch.equal(row[0], before)
    config = json.loads((run / "final/adapter_config.json").read_text(encoding="utf-8"))
    assert config["trainable_token_indices"] == {"embed_tokens": [mask]}
    (counted,) = [each for each in RunFolder(run).read_environment()["tune"] if each["group"] == "embed"]
    assert (counted["mode"], counted["trainable"]) == ("rows", len(before))
    planned = predict(load(RECIPE, "tiny", [*recipe, "data.train=x"], "qvl_mdlm"))
    assert planned.trainable == sum(value.numel() for value in weights(run).values())
    shown = torch.tensor([[mask, 5]])
    load_adapter(model, run / "final")
    assert torch.equal(model.get_input_embeddings()(shown)[0, 0], row[0])
    done = invoking.qvl_mdlm("merge", str(run), "--out", str(tmp_path / "merged"))
    assert ("the head has the mask token's trained row" in done.out) == tied, done.out
    merged, _ = open_masked(str(tmp_path / "merged"))
    assert torch.equal(merged.get_input_embeddings().weight[mask], row[0])
    with torch.no_grad():
        one, other = (each.eval()(input_ids=shown).logits for each in (model, merged))
    apart = (one - other).abs().amax((0, 1)) > 1e-5
    assert apart.nonzero().flatten().tolist() == [mask] * tied


# What cannot be meant, and what can


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["diffusion.attention=block"], "`attention: block` and `block_size` need each other; give both or neither"),
        (["diffusion.block_size=4"], "`attention: block` and `block_size` need each other; give both or neither"),
        (
            ["diffusion.attention=prefix", "diffusion.prompt_loss=true"],
            "prompts are clean there; set `attention: full`",
        ),
        (["diffusion.complementary=true", "diffusion.schedule=cosine"], "`complementary` needs `schedule: linear`"),
        (["model.attention=sdpa", "batch.packing=true"], "would let the samples of a packed row see one another; set"),
        (["evaluate.metrics=[bleu]"], "there is no 'bleu'; choose of exact_match, nelbo"),
        (["diffusion.attention=causal"], "diffusion.attention"),
        (["diffusion.pad_to=0"], "diffusion.pad_to"),
        (["diffusion.block_size=0"], "diffusion.block_size"),
        (["diffusion.mask_token_id=-1"], "diffusion.mask_token_id"),
        (["diffusion.norm=mean"], "diffusion.norm"),
        (["sampling.threshold=1.5"], "sampling.threshold"),
        (["sampling={steps: 2, threshold: 0.9}"], "each says how many tokens a step writes; keep one"),
        (["sampling.steps=9"], "`sampling.steps` 9: must be at most `evaluate.max_new_tokens`, 8"),
        (["sampling={cache: dual, guidance: 1}"], "cache dual and guidance do not go together"),
        ([*BLOCKS, "sampling.cache=dual"], "`sampling.cache: dual` is for `attention: full`"),
        ([*BLOCKS, "sampling.block=8"], "blocks are those of `diffusion.block_size`"),
        (["diffusion.patern=full"], "patern"),
        (["diffusion.mask_row=true"], "`diffusion.mask_row` belongs to LoRA with `embed` frozen; remove it"),
    ],
)
def test_recipes_that_cannot_be_meant(changes: list[str], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(RECIPE, "tiny", changes, "qvl_mdlm")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_token_that_is_anothers_ends_the_run_before_it_begins(
    learn: Callable[..., Path], processor: Any
) -> None:
    end = processor.tokenizer.eos_token_id
    with pytest.raises(BadInput, match=f"mask_token_id {end}: is the end token"):
        learn("run", f"diffusion.mask_token_id={end}")


def test_steps_without_a_mask_are_steps(learn: Callable[..., Path], tmp_path: Path) -> None:
    write_samples(
        [talk(str(n), ("user", "?" * n), ("assistant", "!")) for n in range(1, 5)], tmp_path / "e/train.parquet"
    )
    where, bernoulli = f"data={{train: {tmp_path / 'e'}}}", "diffusion.masks=bernoulli"
    run = learn("run", where, bernoulli, "diffusion.pad_to=null", "batch.size=1", "train.steps=16")
    found = losses(run)
    assert len(found) == 16
    assert 0.0 in found  # nothing was masked
    assert max(found) > 0
    result = RunFolder(run).read_result()
    assert result is not None
    assert (result["complete"], result["bad_samples"], result["nonfinite_steps"]) == (True, 0, 0)


def test_empty_answers_are_bad_samples(learn: Callable[..., Path], tmp_path: Path) -> None:
    chats = [talk(str(n), ("user", "?" * n), ("assistant", "!" if n else " ")) for n in range(4)]
    write_samples(chats, tmp_path / "e/train.parquet")
    where = f"data.train={tmp_path / 'e'}"
    with pytest.raises(BadInput, match=r'messages\[1\] is an answer without text; give it one, or add "train": false'):
        learn("run", where)
    result = RunFolder(learn("borne", where, "data.max_bad=1")).read_result()
    assert result is not None
    assert result["bad_samples"] == 1


def test_chats_without_an_answer_are_named(learn: Callable[..., Path], tmp_path: Path) -> None:
    write_samples([talk(str(n), ("user", "?" * n)) for n in range(1, 5)], tmp_path / "q/train.parquet")
    with pytest.raises(BadInput, match="no assistant turn to learn from; add an answer or remove the sample"):
        learn("run", f"data={{train: {tmp_path / 'q'}}}")
