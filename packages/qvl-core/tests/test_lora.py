"""A tune block does what it says, and its adapter folder means the same to ours, to peft, and merged."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapted import base, logits, tuned
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from qvl_core.errors import BadInput, QVLError
from qvl_core.qwen3vl.groups import GROUPS, group_of
from qvl_core.qwen3vl.lora import apply_tune, load_adapter, merge_adapter, parameter_groups, save_adapter
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Group, Optim

LORA, FULL = Group(mode="lora", rank=4, alpha=8), Group(mode="full")


def trained(model: nn.Module) -> Iterator[str]:
    return (name for name, parameter in model.named_parameters() if parameter.requires_grad)


TUNES = {
    "llm": ({"llm": LORA}, True),
    "llm and merger": ({"llm": LORA, "merger": FULL, "deepstack_mergers": FULL}, True),
    "own ranks": (
        {"llm": LORA, "vision": Group(mode="lora", rank=2, alpha=3), "merger": Group(mode="lora", rank=8)},
        True,
    ),
    "full vision": ({"llm": LORA, "vision": FULL}, True),
    "full llm": ({"vision": LORA, "llm": FULL}, False),
    "tied embeddings": ({"llm": LORA, "embed": FULL, "lm_head": FULL}, True),
    "untied embedding": ({"llm": LORA, "embed": FULL}, False),
    "untied head": ({"llm": LORA, "lm_head": FULL}, False),
    "adapted head": ({"llm": LORA, "lm_head": LORA}, False),
    "adapted head of its own rank": ({"llm": LORA, "lm_head": Group(mode="lora", rank=2, alpha=3)}, False),
    "adapted head, full embedding": ({"llm": LORA, "lm_head": LORA, "embed": FULL}, False),
}


@pytest.mark.parametrize(("tune", "tied"), TUNES.values(), ids=TUNES.keys())
def test_adapter_folder_means_the_same_everywhere(tune: dict[str, Group], tied: bool, tmp_path: Path):
    model = tuned(tune, tied)
    expected = logits(model)
    assert not torch.allclose(expected, logits(base(tied)), atol=1e-2)
    save_adapter(model, tmp_path, "tiny", "abc")
    assert torch.equal(logits(PeftModel.from_pretrained(base(tied), tmp_path)), expected)
    assert torch.equal(logits(load_adapter(base(tied), tmp_path)), expected)
    merged = merge_adapter(base(tied), tmp_path)
    assert (logits(merged) - expected).abs().max() < 5e-6
    assert [name for name, _ in merged.named_modules()] == [name for name, _ in base(tied).named_modules()]


@pytest.mark.parametrize("order", [list(GROUPS), list(reversed(GROUPS))], ids=["first the llm", "first the head"])
def test_each_group_has_its_own_rank_and_scale(order: list[str]):
    blocks = {group: Group(mode="lora", rank=2 + i, alpha=9 - i) for i, group in enumerate(GROUPS) if group != "embed"}
    model = base(tied=False)
    apply_tune(model, {group: blocks[group] for group in order if group in blocks}, seed=0)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            block = blocks[group_of(f"{name}.weight")]
            assert (layer.r["default"], layer.scaling["default"]) == (block.rank, block.alpha / block.rank), name


def test_an_adapted_head_is_continued(tmp_path: Path):
    tune = {"llm": LORA, "lm_head": LORA}
    model, again = tuned(tune, tied=False), base(tied=False)
    save_adapter(model, tmp_path, "tiny")
    apply_tune(again, tune, seed=1)
    assert torch.equal(logits(load_adapter(again, tmp_path)), logits(model))


def test_the_base_and_its_revision_are_recorded(tmp_path: Path):
    save_adapter(tuned({"llm": LORA}), tmp_path, "Qwen/Qwen3-VL-4B-Instruct", "abc")
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("Qwen/Qwen3-VL-4B-Instruct", "abc")
    assert config["target_modules"] == sorted(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_gathered_values_are_written_instead_of_the_models_own(tmp_path: Path):
    model = tuned({"llm": LORA, "merger": FULL})
    gathered = {name: torch.full_like(model.get_parameter(name), 0.01) for name in trained(model)}
    save_adapter(model, tmp_path, "tiny", state_dict=gathered)
    loaded = load_adapter(base(), tmp_path)
    assert torch.equal(loaded.get_parameter("model.visual.merger.norm.weight"), torch.full((96,), 0.01))


def test_a_merged_model_is_a_plain_checkpoint(tmp_path: Path):
    adapter, whole = tmp_path / "adapter", tmp_path / "whole"
    save_adapter(tuned({"llm": LORA, "merger": FULL}), adapter, "tiny")
    merged = merge_adapter(base(), adapter)
    merged.save_pretrained(whole)
    again = type(merged).from_pretrained(whole)
    assert torch.equal(logits(again), logits(merged))


def test_merging_rounds_once(tmp_path: Path):
    save_adapter(tuned({"llm": LORA}), tmp_path, "tiny")
    exact = merge_adapter(base().bfloat16().float(), tmp_path)
    rounded = merge_adapter(base().bfloat16(), tmp_path)
    for (name, a), (_, b) in zip(exact.named_parameters(), rounded.named_parameters(), strict=True):
        assert b.dtype == torch.bfloat16
        assert torch.equal(a.bfloat16(), b), name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_first_values(precision: torch.dtype):
    def adapters(seed: int) -> dict[str, Tensor]:
        model = base().to(precision)
        before = torch.get_rng_state()
        apply_tune(model, {"llm": LORA, "merger": FULL}, seed)
        assert torch.equal(before, torch.get_rng_state())
        assert all(model.get_parameter(name).dtype == torch.float32 for name in trained(model))
        return {name: p for name, p in model.named_parameters() if ".lora_" in name}

    first, same, other = adapters(0), adapters(0), adapters(1)
    reference = base()
    apply_tune(reference, {"llm": LORA}, 0)
    for name, value in first.items():
        assert torch.equal(value, same[name])
        assert torch.equal(value, reference.get_parameter(name))  # whatever the precision
        assert torch.equal(value, other[name]) == ("lora_B" in name)
        assert value.any() != ("lora_B" in name)  # B starts at zero, so training starts at the base


def test_only_what_is_named_gets_gradients():
    model = base()
    table = apply_tune(model, {"llm": LORA, "merger": FULL}, 0, Optim(lr=1e-3, weight_decay=0.1))
    assert {group_of(name) for name in trained(model)} == {"llm", "merger"}
    assert all(".lora_" in name for name in trained(model) if group_of(name) == "llm")
    rows = {row.group: row for row in table.rows}
    assert list(rows) == ["llm", "merger", "deepstack_mergers", "vision", "embed"]  # the head is the embedding
    assert rows["llm"].trainable == 4 * 3 * (896 + 3 * (128 + 320))  # rank x layers x (in + out)
    assert rows["merger"].trainable == rows["merger"].parameters == 197_312
    assert (rows["merger"].lr, rows["merger"].weight_decay, rows["merger"].rank) == (1e-3, 0.1, None)
    assert (rows["vision"].mode, rows["vision"].trainable, rows["vision"].lr) == ("frozen", 0, None)
    assert table.parameters == sum(p.numel() for p in base().parameters())
    assert table.trainable == sum(model.get_parameter(name).numel() for name in trained(model))


def test_the_tune_table_fits_a_terminal(capsys: pytest.CaptureFixture):
    from rich.console import Console

    Console(width=80).print(apply_tune(base(), {"llm": LORA, "deepstack_mergers": FULL}, 0).rich())
    shown = capsys.readouterr().out
    assert re.search(r"deepstack_mergers .*full .*395,776 .*395,776", shown)
    assert re.search(r"all .*1,691,648 .*422,656", shown)


def test_parameter_groups():
    tune = {
        "merger": Group(mode="full", lr=1e-3),
        "llm": Group(mode="lora", weight_decay=0.2),
        "embed": FULL,
        "lm_head": FULL,
    }
    model = base()
    apply_tune(model, tune, 0)
    groups = parameter_groups(model, tune, Optim(lr=1e-4, weight_decay=0.1))
    assert [(g.name, g.lr, g.weight_decay, len(g.parameters)) for g in groups] == [
        ("llm", 1e-4, 0.2, 42),
        ("merger", 1e-3, 0.1, 2),
        ("merger (no decay)", 1e-3, 0.0, 4),
        ("embed (no decay)", 1e-4, 0.0, 1),
    ]
    assert sorted(name for g in groups for name in g.parameters) == sorted(trained(model))


@pytest.mark.parametrize(
    ("tune", "tied", "sentence"),
    [
        ({"mergers": FULL}, True, r'tune\.mergers: unknown group; did you mean "merger"\?'),
        ({"xyz": FULL}, True, r"tune\.xyz: unknown group; there are llm, merger, deepstack_mergers"),
        ({"embed": LORA, "lm_head": LORA}, True, r"tune\.embed: no linear layers that LoRA could adapt; use"),
        ({"embed": FULL}, True, "embed is full and lm_head is frozen, but this model has one matrix for both; give"),
        ({"llm": LORA, "lm_head": LORA}, True, "embed is frozen and lm_head is lora"),
        (
            {"embed": Group(mode="full", lr=1e-5), "lm_head": Group(mode="full", lr=1e-3)},
            True,
            "embed and lm_head have different rates or decays, but this model has one matrix for both; give",
        ),
        ({"llm": LORA, "vision": Group(mode="lora", dropout=0.1)}, True, r"different dropouts \(llm 0, vision 0\.1\)"),
        ({"llm": Group()}, True, "nothing is trained; set the mode"),
        ({}, True, "nothing is trained"),
    ],
)
def test_bad_tune_blocks(tune: dict[str, Group], tied: bool, sentence: str):
    model = base(tied)
    with pytest.raises(BadInput, match=sentence):
        apply_tune(model, tune, 0)
    assert not hasattr(model, "peft_config")


def test_a_trainable_group_that_matches_nothing():
    groups = {**GROUPS, "connector": r"connector\..*"}
    with pytest.raises(BadInput, match=r"tune\.connector: this model has no such parameters"):
        apply_tune(base(), {"connector": FULL}, 0, groups=groups)


class WithConnector(nn.Module):
    """A method's model: Qwen3-VL's modules under their names, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        inner = base()
        self.model, self.lm_head = inner.model, inner.lm_head
        self.connector = nn.Sequential(nn.Linear(128, 8), nn.LayerNorm(8))


def test_groups_of_another_method():
    groups = {**GROUPS, "connector": r"connector\..*"}
    tune = {"connector": FULL, "llm": LORA}
    model = WithConnector()
    table = apply_tune(model, tune, 0, groups=groups)
    assert {row.group: row.trainable for row in table.rows}["connector"] == 128 * 8 + 8 + 8 + 8
    names = [group.name for group in parameter_groups(model, tune, Optim(), groups)]
    assert names == ["llm", "connector", "connector (no decay)"]


def test_bad_adapter_folders(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(BadInput, match=r"no adapter_config\.json there, so it is no adapter;"):
        load_adapter(base(), tiny(tmp_path / "model"))
    with pytest.raises(QVLError, match="no LoRA to save"):
        save_adapter(base(), tmp_path / "none", "tiny")

    folder = tmp_path / "adapter"
    save_adapter(tuned({"llm": LORA, "merger": FULL}), folder, "tiny")
    file = folder / "adapter_model.safetensors"
    good = load_file(file)
    key = "base_model.model.model.visual.merger.norm.weight"
    for change, sentence in (
        ({"base_model.model.extra.weight": torch.zeros(1)}, r"base_model\.model\.extra\.weight is not in this model"),
        ({key: torch.zeros(3)}, r"merger\.norm\.weight is \(3,\) but \(96,\) in this model"),
    ):
        save_file({**good, **change}, file)
        with pytest.raises(BadInput, match=sentence):
            load_adapter(base(), folder)
    for lost, sentence in (
        ("layers.0.mlp.up_proj.lora_B", r"layers\.0\.mlp\.up_proj\.lora_B\.weight is missing"),
        ("merger.norm.weight", r"merger\.norm\.weight is missing"),
    ):
        save_file({name: value for name, value in good.items() if lost not in name}, file)
        with pytest.raises(BadInput, match=sentence):
            load_adapter(base(), folder)
