"""The shipped recipes: valid, described by what is true, plannable offline; `check`; the known-good ranges."""

import json
import re
import shlex
from pathlib import Path

import pytest
from command import qvl_sft

from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.presets import meta_model
from qvl_core.recipe.load import dump, load
from qvl_core.recipe.shipped import shipped
from qvl_core.recipe.testing import check_counts, check_plan, head
from qvl_sft.known_good import warnings
from qvl_sft.plan import model_config, predict
from qvl_sft.recipe import RECIPE, SFTRecipe
from qvl_vision.tiny import tiny_encoder

RECIPES = {recipe.name: recipe for recipe in shipped("qvl_sft")}


def of(name: str, *overrides: str) -> SFTRecipe:
    return load(RECIPE, name, overrides, "qvl_sft")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tiny_vision` says to make first."""
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny_dinov2")


def from_scratch(name: str, encoder: Path) -> SFTRecipe:
    """A recipe with what tiny ones take of earlier runs in its place."""
    overrides = ["model.name=tiny"] if name.startswith("tiny") else []
    return of(name, *overrides, *([f"model.vision.encoder={encoder}"] if name == "tiny_vision" else []))


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_valid(name: str, tmp_path: Path) -> None:
    recipe = of(name)
    (tmp_path / "resolved.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(RECIPE, tmp_path / "resolved.yaml") == recipe
    assert name in qvl_sft("recipes", "list").out


@pytest.mark.parametrize("name", RECIPES)
def test_its_header_has_command_cost_and_expectation(name: str) -> None:
    text = head(RECIPES[name].text)
    (command,) = re.findall(rf"qvl-sft (train {name}\b.*?)(?=  |$)", _command_line(name))
    words = shlex.split(command)
    of(words[1], *(word for word in words[2:] if "=" in word))  # what the header says to type is a valid recipe
    assert re.search(r"(One CPU core, .*|on (one|eight) \d+ GB cards?)", text), "cost"
    assert re.search(
        r"(Expect test_(exact_match of at least|loss of at most) \d\.\d+|[Nn]ot yet run at this size)", text
    ), "expectation"


def _command_line(name: str) -> str:
    return next(line for line in RECIPES[name].text.splitlines() if f"qvl-sft train {name}" in line)


@pytest.mark.parametrize("name", RECIPES)
def test_its_header_counts_right(name: str, encoder: Path) -> None:
    recipe = from_scratch(name, encoder)
    table = apply_tune(meta_model(model_config(recipe.model)), recipe.tune, seed=0)
    check_counts(head(RECIPES[name].text), table)


@pytest.mark.parametrize("name", RECIPES)
def test_plan_needs_no_network(name: str, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_plan(head(RECIPES[name].text), predict(from_scratch(name, encoder)))


def test_plan_prints_a_table() -> None:
    done = qvl_sft("plan", "lora_4b")
    assert done.code == 0, done.err
    assert "GiB" in done.out


def test_check(data: Path, tmp_path: Path) -> None:
    digits = data / "digits"
    done = qvl_sft("check", "tiny", f"data={{train: {digits}, test: {digits}}}", "--out", str(tmp_path / "check"))
    assert done.code == 0, done.err
    said = " ".join(done.out.replace("│", " ").split())  # boxes wrap lines
    for words in (
        "samples/epoch",
        "1,257",
        "first batch",
        "Which digit is this?",
        "image tokens]",
        "deepstack_mergers",
    ):
        assert words in said, words
    assert re.search(r"200 steps", done.out)
    page = (tmp_path / "check/check.html").read_text(encoding="utf-8")
    assert "Which digit is" in page
    assert (tmp_path / "check/bad_samples.jsonl").read_text(encoding="utf-8") == ""


def test_check_tells_of_samples_in_two_lists(data: Path) -> None:
    file = data / "digits/test.parquet"
    common = " ".join(qvl_sft("check", "tiny", f"data={{train: {file}, test: '{file}%50'}}").out.split())
    assert "test.parquet: 180 samples are in train and in test; what is learned would be measured" in common
    apart = qvl_sft("check", "tiny", f"data={{train: '{file}[train:100,test:50]', test: '{file}[train:100,test:50]'}}")
    assert apart.code == 0, apart.err
    assert "are in train and in test" not in apart.out


def test_check_lists_bad_samples(tmp_path: Path) -> None:
    row = {"image": "no.png", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "1"}]}
    text = {"id": "text", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "1"}]}
    lines = "".join(json.dumps(entry) + "\n" for entry in (text, {"id": "a", **row}, {"id": "b", **row}))
    (tmp_path / "data.jsonl").write_text(lines, encoding="utf-8")
    given = ["check", "tiny", f"data={{train: {tmp_path / 'data.jsonl'}}}", "--out", str(tmp_path / "check")]
    done = qvl_sft(*given)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "2 bad samples, data.max_bad allows 0" in done.err
    assert "train: 2 x media_missing, such as: " in done.out
    listed = (tmp_path / "check/bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(entry["id"], entry["reason"]) for entry in map(json.loads, listed)] == [
        (f"{tmp_path / 'data.jsonl'}:2 (a)", "media_missing"),
        (f"{tmp_path / 'data.jsonl'}:3 (b)", "media_missing"),
    ]
    assert qvl_sft(*given, "data.max_bad=2").code == 0


# Known-good ranges


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_in_the_known_good_ranges(name: str) -> None:
    large = 0.0 if name.startswith("tiny") else 4e9
    doubts = [line for line in warnings(of(name), int(large)) if not line.startswith("checkpoint.every")]
    assert not doubts


@pytest.mark.parametrize(
    ("overrides", "doubt"),
    [
        (["tune.llm.lr=1e-6"], "tune.llm: lr 1e-06 is low for LoRA"),
        (["tune.llm.lr=5e-3"], "tune.llm: lr 0.005 is high for LoRA"),
        (["tune.llm.alpha=128"], "tune.llm: alpha / rank is 8"),
        (["tune.merger.lr=1e-2"], "tune.merger: lr 0.01 is high for a merger"),
        (["tune.llm={mode: full, lr: 1e-3}"], "tune.llm: lr 0.001 is high for training in full"),
        (["tune.vision={mode: lora, lr: 1e-3}"], "tune.vision: lr 0.001 moves the tower quickly"),
        (["train.steps=100", "schedule.warmup=50"], "schedule.warmup of 50 steps is over a fifth"),
        (["train.epochs=3"], "data.validation is empty"),
        (["checkpoint.every=null"], "checkpoint.every is not set"),
    ],
)
def test_a_doubt_is_said(overrides: list[str], doubt: str) -> None:
    before, after = (list(warnings(of("lora_4b", *given), 4_000_000_000)) for given in ((), overrides))
    assert not before
    (sentence,) = after
    assert sentence.startswith(doubt)


@pytest.mark.parametrize(
    ("recipe", "override", "doubt"),
    [
        ("mimic_4b_rad_dino", "tune.merger.lr=2e-5", "tune.merger: lr 2e-05 is too low for a new merger"),
        ("mimic_4b_rad_dino", "tune.merger.lr=2e-2", "tune.merger: lr 0.02 is high for a new merger"),
        ("mimic_4b_rad_dino_two_stage", "train.alignment.lr=1e-5", "train.alignment: lr 1e-05 is too low for a new"),
        ("mimic_4b_rad_dino_two_stage", "tune.merger.lr=2e-5", None),  # after stage one, as the document has it
        ("lora_4b", "tune.merger.lr=2e-5", None),  # Qwen's own merger
        ("lora_4b", "tune.merger.lr=2e-5", "tune.merger: lr 2e-05 is too low for a new merger"),  # swapped before
    ],
)
def test_a_new_merger_has_rates_of_its_own(recipe: str, override: str, doubt: str | None) -> None:
    random_merger = recipe == "lora_4b" and doubt is not None
    found = list(warnings(of(recipe, override), 4_000_000_000, random_merger))
    assert [sentence[: len(doubt)] for sentence in found] == [doubt] if doubt else not found
