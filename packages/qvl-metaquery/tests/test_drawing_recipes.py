"""The shipped recipes: valid, described by what is true, with the values of the document they are named in."""

import re
from pathlib import Path

import pytest
from drawing_verbs import qvl_metaquery

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.recipe.load import dump, load
from qvl_core.recipe.shipped import shipped
from qvl_core.recipe.testing import check_counts, check_plan, head
from qvl_metaquery.model import GROUPS
from qvl_metaquery.plan import predict
from qvl_metaquery.recipe import RECIPE, MetaQueryRecipe
from qvl_metaquery.released import shapes

RECIPES = {recipe.name: recipe for recipe in shipped("qvl_metaquery")}
LARGE = [name for name in RECIPES if name.startswith("qwen3vl")]


def of(name: str, *overrides: str) -> MetaQueryRecipe:
    return load(RECIPE, name, overrides, "qvl_metaquery")


def test_those_that_the_document_names_are_there() -> None:
    stages = {"2b": ("", "_inst", "_edit"), "4b": ("", "_inst"), "8b": ("", "_inst")}
    assert set(LARGE) == {f"qwen3vl{size}_sana{stage}" for size, found in stages.items() for stage in found}


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_valid(name: str, tmp_path: Path) -> None:
    recipe = of(name)
    (tmp_path / "resolved.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(RECIPE, tmp_path / "resolved.yaml") == recipe
    assert f"qvl-metaquery train {name}" in RECIPES[name].text


@pytest.mark.parametrize("name", LARGE)
def test_its_head_counts_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe, text = of(name), head(RECIPES[name].text)
    check_counts(text, apply_tune(shapes(recipe)[0], recipe.tune, seed=0, groups=GROUPS))
    check_plan(text, predict(recipe))
    frozen = predict(of(name, "tune.transformer.mode=frozen"))
    said = re.search(r"leaves Sana as it was: ([\d.]+)B trained, ([\d.]+) GiB", text)
    assert said is not None
    assert float(said[1]) == pytest.approx(frozen.trainable / 1e9, abs=0.0051)
    assert float(said[2]) == pytest.approx(frozen.needed / 2**30, rel=0.02)


@pytest.mark.parametrize("name", LARGE)
def test_it_has_the_documents_values(name: str) -> None:
    recipe, first = of(name), name.endswith("_sana")
    assert recipe.model.name == f"Qwen/Qwen3-VL-{name[7].upper()}B-Instruct"
    assert (recipe.optim.lr, recipe.schedule.warmup) == ((1e-4, 5000) if first else (5e-5, 2000))
    assert (recipe.queries.number, recipe.connector.layers, recipe.flow.size) == (256, 24, 512)
    assert (recipe.sampling.guidance, recipe.sampling.image_guidance, recipe.sampling.steps) == (4.5, 1.5, 30)
    assert (recipe.optim.betas, recipe.optim.weight_decay, recipe.train.clip) == ((0.9, 0.95), 0.1, 0.5)
    assert recipe.flow.task == {"sana": "t2i", "inst": "instruct", "edit": "edit"}[name.split("_")[-1]]
    assert {group for group, block in recipe.tune.items() if block.mode == "full"} == {
        "queries",
        "connector",
        "transformer",
    }
    stage = None if first else f"runs/{'_'.join(name.split('_')[:2])}/final"
    assert recipe.model.init_from == stage


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["modules_to_freeze=[vae]"], "`modules_to_freeze`: `tune` says what is trained"),
        (["modules_to_unfreeze=[model.mllm_backbone.model.embed_tokens]"], "queries are no rows of an embedding"),
        (["tune.embed.mode=full"], "`tune.embed`: Qwen3-VL stays frozen"),
        (["tune.connector.mode=lora"], "adapters are not for connector"),
        (["batch.tokens=4096"], "`tokens` belongs to text"),
        (["connector.width=100"], "connector.width"),
        (["flow.dropout=0.4"], "flow.dropout"),
        (
            ["train.recompute=[vision]"],
            "drawing recomputes every layer that gradients pass, or none: set true or false",
        ),
        (["train.recompute=[]"], "set true or false"),
        (["speed.label_rows=false"], "`label_rows` does nothing in drawing, where no logits are computed: remove it"),
        (["speed.frozen_features=false"], "prompts are never read with gradients"),
        (["speed.cache_features=1"], "only the autoencoder's latents are stored (`flow.latents`)"),
        (["speed.offload=true"], "`train.recompute: true` makes them few"),
        (["speed.compile=true"], "layers are not compiled"),
        (["queries.nummber=3"], 'did you mean "queries.number"'),
    ],
)
def test_what_cannot_be_meant(changes: list[str], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        of("tiny", *changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_is_none_is_an_error() -> None:
    done = qvl_metaquery("plan", "tiny", "tune.conector.mode=full")
    assert (done.code, done.err.strip()) == (2, 'tune.conector: unknown group; did you mean "connector"?')
