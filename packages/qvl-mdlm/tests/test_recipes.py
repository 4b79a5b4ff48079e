"""The shipped recipes: valid, described by what is true, plannable offline; `check`; `tiny` really learns."""

import json
from pathlib import Path

import pytest
from asking import digits
from invoking import qvl_mdlm

from qvl_core.qwen3vl.load import open_config
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.presets import meta_model
from qvl_core.recipe.load import dump, load
from qvl_core.recipe.shipped import shipped
from qvl_core.recipe.testing import check_counts, check_plan, head
from qvl_data.convert import write_samples
from qvl_data.example.digits import digits_dataset
from qvl_mdlm.check import warnings
from qvl_mdlm.plan import predict
from qvl_mdlm.recipe import RECIPE, MDLMRecipe

RECIPES = {recipe.name: recipe for recipe in shipped("qvl_mdlm")}


def of(name: str, *overrides: str) -> MDLMRecipe:
    return load(RECIPE, name, overrides, "qvl_mdlm")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    for split in ("train", "validation", "test"):
        write_samples(digits_dataset("digit", split), folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_valid_and_undoubted(name: str, tmp_path: Path) -> None:
    recipe = of(name)
    (tmp_path / "resolved.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(RECIPE, tmp_path / "resolved.yaml") == recipe
    assert f"qvl-mdlm train {name}" in RECIPES[name].text
    assert not list(warnings(recipe, predict(recipe).parameters))


@pytest.mark.parametrize("name", RECIPES)
def test_its_head_counts_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe, text = of(name), head(RECIPES[name].text)
    check_counts(text, apply_tune(meta_model(open_config(recipe.model.name)), recipe.tune, seed=0))
    check_plan(text, predict(recipe))


def test_the_plan_counts_the_mask_of_who_sees_whom() -> None:
    rows = ("batch.tokens=32768", "batch.max_length=4096")
    full, prefix = predict(of("lora_2b", *rows)), predict(of("lora_2b", *rows, "diffusion.attention=prefix"))
    assert "mask" not in full.rows
    assert prefix.rows["mask"] == 4096**2 * (1 + 2)
    assert prefix.rows["activations"] > full.rows["activations"]  # kernels that take a mask repeat keys and values
    padded = predict(of("block_2b"))
    assert padded.rows["mask"] == 4096**2 * (1 + 2)


def test_the_plan_counts_both_halves_of_a_pair() -> None:
    how = ("batch={size: 32, micro: 2, packing: false}", "diffusion.complementary=true")
    assert predict(of("full_2b", *how)).tokens == 2 * predict(of("full_2b", how[0])).tokens


def test_tiny_learns_to_answer(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    lists = f"data={{train: {data}, validation: {data}, test: {data}}}"
    changes = ["evaluate.every=null", "checkpoint.every=125"]
    done = qvl_mdlm("train", "tiny", lists, *changes, "--out", str(out))
    assert done.code == 0, done.err
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["test_exact_match"] >= 0.8  # as the recipe's head promises; chance is 0.1
    assert (out / "report.html").is_file()


def test_check_shows_what_is_masked(data: Path, tmp_path: Path) -> None:
    done = qvl_mdlm("check", "tiny", f"data={{train: {data}, test: {data}}}", "--out", str(tmp_path / "check"))
    assert done.code == 0, done.err
    for words in ("1,257", "first batch", "░", "the mask is row 513", "attention full", "250 steps"):
        assert words in done.out, words
    assert "░" in (tmp_path / "check/check.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["tune={llm: {mode: lora, rank: 4}}"], "ranks below 8 did not convert"),
        (["tune={llm: {mode: lora, rank: 16}}", "train.steps=200"], "LoRA needed 600"),
        (["sampling.steps=4"], "whether they agree or not"),
        (["tune={merger: {mode: full}}"], "tune.llm is frozen"),
        (["diffusion.pad_to=null"], "sampling has to know the length"),
        (["evaluate.max_new_tokens=12"], "no multiple of diffusion.pad_to 8"),
        (["diffusion={attention: block, block_size: 3}"], "no multiple of diffusion.block_size 3"),
    ],
)
def test_a_doubt_is_said(changes: list[str], words: str) -> None:
    assert any(words in sentence for sentence in warnings(of("tiny", *changes), 1_700_000))


def test_blocks_are_not_doubted_for_a_pad_to_that_they_do_not_use() -> None:
    blocks = of("tiny", "diffusion={attention: block, block_size: 2, pad_to: 32}")
    assert not list(warnings(blocks, 1_700_000))


def test_full_training_of_a_large_model_at_a_high_rate_is_doubted() -> None:
    assert any(
        "is high for full training" in said for said in warnings(of("full_2b", "tune.llm.lr=1e-3"), 2_000_000_000)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["diffusion.attention=block"], "need each other"),
        (["diffusion.block_size=4"], "need each other"),
        (["diffusion={attention: prefix, prompt_loss: true}"], "exclude each other"),
        (["diffusion={complementary: true, schedule: cosine}"], "needs `schedule: linear`"),
        (["model.attention=sdpa"], "set `batch.packing: false`"),
        (["evaluate.metrics=[bleu]"], "there is no 'bleu'"),
        (["diffusion.mask_token_id=900"], "the embedding has 576 rows; leave it out"),
        (["diffusion.attension=full"], 'did you mean "diffusion.attention"'),
    ],
)
def test_what_cannot_be_meant(changes: list[str], words: str, data: Path) -> None:
    done = qvl_mdlm("check", "tiny", f"data={{train: {data}}}", *changes)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_canvas_that_is_too_long_says_what_to_do(tmp_path: Path) -> None:
    write_samples(digits(4, "train"), tmp_path / "data" / "train.parquet")
    done = qvl_mdlm(
        "check", "tiny", f"data={{train: {tmp_path / 'data'}}}", "batch.max_length=24", "diffusion.pad_to=64"
    )
    assert done.code == 2
    assert "lower diffusion.pad_to" in " ".join(done.out.split())  # lines wrap
