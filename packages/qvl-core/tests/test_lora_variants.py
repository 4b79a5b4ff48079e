"""rsLoRA, DoRA, PiSSA, LoRA+ and top layers: what they name is trained, and their folders are plain adapters."""

import json
import math
from pathlib import Path

import pytest
import torch
from adapted import base, inputs, logits, move, tuned
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.groups import group_of
from qvl_core.qwen3vl.load import fingerprint
from qvl_core.qwen3vl.lora import apply_tune, load_adapter, merge_adapter, parameter_groups, save_adapter
from qvl_core.recipe.blocks import Group, Optim

FULL = Group(mode="full")


def lora(**settings: object) -> Group:
    return Group.model_validate({"mode": "lora", "rank": 4, "alpha": 8, **settings})


TUNES = {
    "rslora": {"llm": lora(rslora=True), "vision": lora(rslora=True, rank=2)},
    "dora": {"llm": lora(dora=True), "vision": lora(dora=True), "merger": FULL},
    "last layers": {"llm": lora(layers=2), "vision": lora(layers=1, rank=2)},
    "last layers in full": {"llm": lora(), "vision": Group(mode="full", layers=2)},
    "pissa": {"llm": lora(init="pissa")},
    "pissa and others": {"llm": lora(init="pissa", rslora=True), "vision": lora(rslora=True), "merger": FULL},
    "others and pissa": {"llm": lora(), "vision": lora(init="pissa", rank=8, layers=2)},
    "pissa dora": {"llm": lora(init="pissa", dora=True)},
}


@pytest.mark.parametrize("tune", TUNES.values(), ids=TUNES.keys())
def test_adapter_folder_means_the_same_everywhere(tune: dict[str, Group], tmp_path: Path):
    model = tuned(tune)
    expected = logits(model)
    assert not torch.allclose(expected, logits(base()), atol=1e-2)
    save_adapter(model, tmp_path, "tiny")
    for loaded in (PeftModel.from_pretrained(base(), tmp_path), load_adapter(base(), tmp_path)):
        assert (logits(loaded) - expected).abs().max() < 2e-5
    merged = merge_adapter(base(), tmp_path)
    assert (logits(merged) - expected).abs().max() < 2e-5
    assert [name for name, _ in merged.named_modules()] == [name for name, _ in base().named_modules()]


@pytest.mark.parametrize("name", TUNES)
def test_training_starts_at_the_base(name: str, tmp_path: Path):
    model = base()
    apply_tune(model, TUNES[name], seed=0)
    assert (logits(model) - logits(base())).abs().max() < 2e-5


# PiSSA


def test_pissa_takes_the_main_directions():
    name = "model.language_model.layers.1.mlp.up_proj"
    whole = base().get_submodule(name).weight.detach()
    model = base()
    apply_tune(model, {"llm": lora(init="pissa", rank=8)}, seed=0)
    rest = model.get_submodule(name).base_layer.weight.detach()
    best = torch.linalg.svdvals(whole)[8:].norm()  # no matrix of rank 8 leaves less (Eckart and Young)
    assert best <= rest.norm() < 1.01 * best


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_pissa_is_saved_as_the_difference_from_its_first_values(precision: torch.dtype, tmp_path: Path):
    model = base().to(precision)
    apply_tune(model, {"llm": lora(init="pissa", rank=4, alpha=8)}, seed=0)
    save_adapter(model, tmp_path, "tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)
    values = load_file(tmp_path / "adapter_model.safetensors")
    for key, a in values.items():
        if "lora_A" in key:
            assert (values[key.replace("lora_A", "lora_B")] @ a).abs().max() < 1e-6  # nothing was trained


def test_pissa_repeats_itself_to_the_bit_on_any_number_of_threads():
    def built(seed: int = 0, threads: int = 1) -> nn.Module:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            model = base()
            apply_tune(model, {"llm": lora(init="pissa")}, seed)
            assert torch.get_num_threads() == threads
            return model
        finally:
            torch.set_num_threads(before)

    first, again, other = built(), built(threads=2), built(seed=1)
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    for (name, a), (_, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_pissa_of_16_bits_leaves_only_rounding(tmp_path: Path):
    model = base().bfloat16()
    apply_tune(model, {"llm": lora(init="pissa")}, seed=0)
    name = "model.language_model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(name)
    start = layer.get_base_layer().weight.float() + layer.get_delta_weight("default")
    whole = base().bfloat16().get_submodule(name).weight.float()
    assert 0 < (start - whole).abs().max() <= 2**-8 * whole.abs().max()


# DoRA and rsLoRA


def test_scales():
    def scaling(**settings: object) -> set[float]:
        model = base()
        apply_tune(model, {"llm": lora(**settings)}, seed=0)
        return {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}

    assert scaling() == {8 / 4}
    assert scaling(rslora=True) == {8 / math.sqrt(4)}


def test_dora_magnitudes_are_trained_in_fp32_and_do_not_decay():
    model = base().bfloat16()
    tune = {"llm": lora(dora=True)}
    apply_tune(model, tune, seed=0)
    groups = {group.name: group for group in parameter_groups(model, tune, Optim(weight_decay=0.1))}
    assert list(groups) == ["llm", "llm (no decay)"]
    magnitudes = groups["llm (no decay)"].parameters
    assert len(magnitudes) == 21
    assert all("lora_magnitude_vector" in name and p.dtype == torch.float32 for name, p in magnitudes.items())
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs()).logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in magnitudes.values())


# LoRA+


def test_b_learns_faster(capsys: pytest.CaptureFixture[str]):
    model = base()
    tune = {"llm": lora(lr=1e-4, plus=16, weight_decay=0.1), "vision": lora(lr=1e-5)}
    table = apply_tune(model, tune, seed=0)
    groups = parameter_groups(model, tune, Optim())
    assert [(g.name, g.lr, g.weight_decay) for g in groups] == [
        ("llm", 1e-4, 0.1),
        ("llm (LoRA+ B)", pytest.approx(1.6e-3), 0.1),
        ("vision", 1e-5, 0.0),
    ]
    assert {name.split(".")[-3] for name in groups[0].parameters} == {"lora_A"}
    assert {name.split(".")[-3] for name in groups[1].parameters} == {"lora_B"}
    assert table.rows[0].notes == "B x 16"
    Console(width=80).print(table.rich())
    assert "llm: B x 16" in capsys.readouterr().out


# Layers


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_only_the_last_layers_are_trained(mode: str):
    block = Group.model_validate({"mode": mode, "layers": 2})
    model = base()
    table = apply_tune(model, {"llm": block, "vision": block.model_copy(update={"layers": 1})}, seed=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = {tuple(name.split(".")[:4]) for name in trained}
    assert layers == {
        ("model", "language_model", "layers", "1"),
        ("model", "language_model", "layers", "2"),
        ("model", "visual", "blocks", "2"),
    }
    inside = {name for name, _ in model.named_parameters() if tuple(name.split(".")[:4]) in layers}
    assert trained == (inside if mode == "full" else {name for name in inside if ".lora_" in name})
    assert {row.group: row.notes for row in table.rows}["llm"] == "last 2 layers"


# What cannot be meant


@pytest.mark.parametrize(
    ("tune", "sentence"),
    [
        ({"llm": lora(rslora=True), "vision": lora()}, r"different rslora \(llm true, vision false\); give all LoRA"),
        ({"llm": lora(), "vision": lora(dora=True)}, r"different dora \(llm false, vision true\); give all LoRA"),
        ({"llm": lora(layers=4)}, r"tune\.llm\.layers: 4, but there are 3; lower it"),
        ({"merger": Group(mode="full", layers=1)}, r"tune\.merger\.layers: this group has no layers to count"),
        ({"llm": lora(init="pissa", rank=65)}, r"tune\.llm\.rank: 65 is more than .*k_proj has directions; lower it"),
        ({"llm": lora(init="loftq")}, r"tune\.llm\.init: loftq makes up for what nf4 loses; set `model\.quantization"),
    ],
)
def test_bad_tune_blocks(tune: dict[str, Group], sentence: str):
    with pytest.raises(BadInput, match=sentence):
        apply_tune(base(), tune, 0)


# Continuing an adapter


def test_an_adapter_is_continued_under_the_same_settings(tmp_path: Path):
    model = tuned({"llm": lora(dora=True)})
    save_adapter(model, tmp_path, "tiny")
    again = base()
    apply_tune(again, {"llm": lora(dora=True)}, seed=5)
    assert torch.equal(logits(load_adapter(again, tmp_path)), logits(model))
    for block, sentence in (
        (lora(dora=True, alpha=4), r"q_proj is scaled by 2 there and by 1 here; set tune's rank, alpha and rslora"),
        (lora(dora=True, rslora=True), "is scaled by 2 there and by 4 here"),
        (lora(), "dora is true there; set tune's `dora` to the same"),
        (lora(dora=True, init="pissa"), "has its first values; set tune's `init` to zero"),
    ):
        other = base()
        apply_tune(other, {"llm": block}, seed=0)
        with pytest.raises(BadInput, match=sentence):
            load_adapter(other, tmp_path)


def test_a_pissa_run_is_continued_as_plain_lora_of_twice_the_rank(tmp_path: Path):
    model = tuned({"llm": lora(init="pissa")})
    save_adapter(model, tmp_path / "first", "tiny")
    again = base()
    apply_tune(again, {"llm": lora(rank=8, alpha=16)}, seed=0)
    load_adapter(again, tmp_path / "first")
    assert (logits(again) - logits(model)).abs().max() < 2e-5
    save_adapter(move(again), tmp_path / "second", "tiny")
    assert torch.equal(logits(load_adapter(base(), tmp_path / "second")), logits(again))


def test_groups_of_variants_belong_to_what_they_adapt():
    model = tuned({"llm": lora(dora=True), "vision": lora(dora=True)})
    groups = {group_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert groups == {"llm", "vision"}
