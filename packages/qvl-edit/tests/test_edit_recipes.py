"""The shipped recipes: valid, described by what is true, with the values of the document; what cannot be meant;
`tiny_digits` really learns."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from editing_verbs import qvl_edit

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.quantize import quantized_layers
from qvl_core.recipe.load import dump, load
from qvl_core.recipe.shipped import shipped
from qvl_core.recipe.testing import check_counts, head
from qvl_data.convert import write_samples
from qvl_data.example.recoloured import samples
from qvl_edit.groups import groups
from qvl_edit.recipe import RECIPE, EditRecipe
from qvl_edit.released import configs, transformer_shapes

RECIPES = {recipe.name: recipe for recipe in shipped("qvl_edit")}
LAYERS = 60


def of(name: str, *overrides: str) -> EditRecipe:
    return load(RECIPE, name, overrides, "qvl_edit")


def transformer() -> QwenImageTransformer2DModel:
    """Of the released checkpoints, without storage."""
    with torch.device("meta"):
        return QwenImageTransformer2DModel(out_channels=16)


def test_those_that_are_promised_are_there() -> None:
    assert set(RECIPES) == {"full_2509", "lora_2509", "lora_2511", "lora_21", "qlora", "t2i", "tiny", "tiny_digits"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_valid(name: str, tmp_path: Path) -> None:
    recipe = of(name)
    (tmp_path / "resolved.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(RECIPE, tmp_path / "resolved.yaml") == recipe
    assert f"qvl-edit train {name}" in RECIPES[name].text


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("tiny")])
def test_its_head_counts_right(name: str) -> None:
    recipe = of(name)
    transformer = transformer_shapes(configs(recipe.model))
    layers = len(transformer.transformer_blocks)
    table = apply_tune(transformer, recipe.tune, seed=0, groups=groups(recipe.tune, layers))
    assert table.parameters == (7_115_124_736 if name == "lora_21" else 20_430_401_088)
    check_counts(head(RECIPES[name].text), table)


def test_the_full_recipe_is_the_documents_command() -> None:
    recipe = of(
        "full_2509", "data.train=/path/to/your_meta_dir", "mixture.tasks=dataset_a=0.5,dataset_b=1.2,dataset_c=1.0"
    )
    assert recipe.model.name == "Qwen/Qwen-Image-Edit-2509"
    assert recipe.data.train[0].source == "/path/to/your_meta_dir"
    assert recipe.mixture.tasks == {"dataset_a": 0.5, "dataset_b": 1.2, "dataset_c": 1.0}
    assert recipe.mixture.sources == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}
    assert (recipe.pictures.size, recipe.pictures.vae_batch, recipe.flow.times) == (512, 1, "uniform")
    assert (recipe.batch.size, recipe.batch.micro, recipe.parallel.nproc) == (8, 1, 8)
    assert (recipe.optim.lr, recipe.optim.weight_decay) == (2e-5, 3e-2)
    assert (recipe.schedule.name, recipe.schedule.warmup) == ("constant", 100)
    assert (recipe.train.steps, recipe.train.clip, recipe.train.precision) == (512, 0.05, "bf16")
    assert (recipe.train.recompute, recipe.checkpoint.every, recipe.parallel.strategy) == (True, 100, "fsdp2")
    assert {name: block.mode for name, block in recipe.tune.items()} == {"transformer": "full"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The same sums in the same order on every machine, and no threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_tiny_digits_learns_an_edit(tmp_path: Path) -> None:
    data, run = tmp_path / "recoloured", tmp_path / "run"
    for split, digits in (("train", 400), ("test", 20)):
        write_samples(islice(samples(split), 3 * digits), data / f"{split}.parquet")
    given = [f"data={{train: {data}, test: {data}}}", f"stored.embeddings={tmp_path / 'embeddings'}"]
    for command in (
        ("extract", "tiny_digits", *given, "--batch", 16),
        ("train", "tiny_digits", *given, "evaluate.every=null", "sampling.preview=0", "--out", run),
        ("evaluate", run, "tiny_digits", *given, "--check", "recoloured", "--out", tmp_path / "evaluation"),
    ):
        done = qvl_edit(*command)
        assert done.code == 0, done.err
    found = json.loads((tmp_path / "evaluation" / "result.json").read_text("utf-8"))
    assert found["pictures"] == 60
    assert found["recoloured_red"] >= 0.5  # as the recipe's head promises; untrained 0
    assert found["nearer_target"] >= 0.6  # what copies has 0


def test_weights_may_be_written_as_a_block() -> None:
    recipe = of("tiny", "mixture={tasks: {a: 1, b: 0.5}, sources: {0: 1, 2: 3}}")
    assert recipe.mixture.tasks == {"a": 1.0, "b": 0.5}
    assert recipe.mixture.sources == {0: 1.0, 2: 3.0}
    assert of("tiny", "mixture.sources=1=1").mixture.sources == {1: 1.0}


def test_parts_are_named_by_pieces_of_their_names() -> None:
    recipe = of("tiny", "tune={attn.to_q: {mode: full, lr: 1e-5}, transformer: {mode: full}}")
    assert list(recipe.tune) == ["attn.to_q", "transformer"]


def test_what_is_held_in_fewer_bits() -> None:
    quantization = of("qlora").model.quantization
    assert quantization is not None
    assert (quantization.kind, quantization.groups) == ("nf4", ["transformer_blocks"])
    found = quantized_layers(transformer(), quantization, groups(quantization.groups, LAYERS))
    assert all(name.startswith("transformer_blocks.") for name in found)
    assert len(found) == 60 * 14 - 4  # the last block's four that are not used are left as they are


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["mixture.tasks=a=-1"], "the weight of `a` is -1; it must be 0 or more"),
        (["mixture.tasks=a"], "`a` is no weight; write NAME=NUMBER"),
        (["mixture.sources=0=0,1=0"], "all weights are 0"),
        (["mixture.sources=one=1"], "`one` is no number of sources"),
        (["mixture={sources: {1: -1}}"], "the weight of `1` is -1"),
        (["mixture.dropout=2"], "mixture.dropout"),
        (["mixture.task=a=1"], 'did you mean "mixture.tasks"'),
        (["flow.times=sigmoid"], "flow.times"),
        (["data.train=2*a.jsonl"], "`weight` of a.jsonl: tasks are weighted in `mixture.tasks`; remove it"),
        (["batch.tokens=4096"], "`tokens` belongs to text"),
        (["train.recompute=[llm]"], "set true or false"),
        (["speed.compile=true"], "`compile` does nothing in editing, where layers are not compiled: remove it"),
        (["evaluate.metrics=[exact_match]"], "`metrics` belongs to answers"),
        (["model.attention=flash"], "`attention`: the transformer has one way to attend"),
        (["media.max_pixels=262144"], "`pictures` has the sizes: remove it"),
        (["tune.transformer.mode=frozen"], "`tune` trains nothing"),
        (["tune.transformer.layers=2"], "name blocks of the transformer instead"),
        (
            ["tune={attn: {mode: lora, dora: true}}", "model.quantization=nf4"],
            "`tune.attn.dora`: needs full-precision weights; remove it, or model.quantization",
        ),
        (["tune={attn: {mode: lora, init: pissa}}"], "`tune.attn.init`: an adapter here begins at zero"),
        (["tune={attn: {mode: lora, init: loftq}}", "model.quantization=nf4"], "`tune.attn.init`: an adapter here"),
        (["speed.offload_blocks=2"], "set train.recompute: true"),
        (["speed.offload_blocks=2", "parallel.strategy=fsdp2"], "fsdp2 shares weights among devices; set it to 0"),
        (
            ["speed.offload_blocks=2", "train.recompute=true", "model.quantization=nf4"],
            "weights in fewer bits stay on the device",
        ),
        (["tune={unused: {mode: full}}"], "`tune.unused`: no prediction depends on it; remove it"),
    ],
)
def test_what_cannot_be_meant(changes: list[str], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        of("tiny", *changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
