"""Weights in fewer bits: exactly the layers that are named, and adapters that mean the same on the full base."""

import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from adapted import base, inputs, logits, tuned
from peft import PeftModel
from torch import nn

from qvl_core.errors import BadInput
from qvl_core.qwen3vl import quantize as module
from qvl_core.qwen3vl.groups import group_of, linear_targets
from qvl_core.qwen3vl.head import head_nll, label_nll
from qvl_core.qwen3vl.load import fingerprint, load_model, summary
from qvl_core.qwen3vl.lora import apply_tune, load_adapter, merge_adapter, save_adapter
from qvl_core.qwen3vl.quantize import dequantized, is_low_bit, quantize, size
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Group, Model, Quantization

NF4, INT8 = Quantization(kind="nf4"), Quantization(kind="int8")
KINDS = pytest.mark.parametrize("quantization", [NF4, INT8], ids=["nf4", "int8"])


def lora(**settings: object) -> Group:
    return Group.model_validate({"mode": "lora", "rank": 4, "alpha": 8, **settings})


@KINDS
def test_exactly_the_named_layers_are_held_in_fewer_bits(quantization: Quantization):
    model, whole = base(), dict(base().named_parameters())
    quantize(model, quantization)
    low = {name for name, parameter in model.named_parameters() if is_low_bit(parameter)}
    assert low == {f"{name}.weight" for name in linear_targets(base(), "llm")}
    for name, parameter in model.named_parameters():
        if name not in low:
            assert torch.equal(parameter, whole[name]), name
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_other_groups_where_they_are_asked_for():
    model = base(tied=False)
    quantize(model, Quantization(kind="nf4", groups=["vision", "lm_head", "vision"]))
    low = {group_of(name) for name, parameter in model.named_parameters() if is_low_bit(parameter)}
    assert low == {"vision", "lm_head"}
    assert logits(model).isfinite().all()


@pytest.mark.parametrize(("quantization", "least", "most"), [(NF4, 0.05, 0.15), (INT8, 0.002, 0.01)])
def test_what_is_lost_is_measured(quantization: Quantization, least: float, most: float):
    model = base()
    found = quantize(model, quantization)
    assert least < found.error <= found.largest_error < most
    name = "model.language_model.layers.1.mlp.down_proj"
    weight = base().get_submodule(name).weight
    lost = (dequantized(model.get_submodule(name).weight) - weight).norm() / weight.norm()
    assert least < lost <= found.largest_error * 1.0001
    assert 0 < (logits(model) - logits(base())).norm() / logits(base()).norm() < 3 * most
    whole = base()
    inside = sum(whole.get_submodule(name).weight.numel() for name in linear_targets(whole, "llm"))
    assert found.share == pytest.approx(inside / sum(p.numel() for p in whole.parameters()))
    assert f"21 layers (31% of the weights) in {quantization.kind}, which differ" in summary(model)


def test_double_quantisation_holds_the_scales_in_8_bits():
    name = "model.language_model.layers.0.mlp.up_proj"
    types = []
    for double in (True, False):
        model = base()
        quantize(model, Quantization(kind="nf4", double=double))
        types.append(model.get_submodule(name).weight.quant_state.absmax.dtype)
    assert types == [torch.uint8, torch.float32]


@KINDS
def test_parameters_are_counted_as_what_they_stand_for(quantization: Quantization):
    model = base()
    expected = sum(p.numel() for p in model.parameters())
    quantize(model, quantization)
    assert sum(size(p) for p in model.parameters()) == expected
    table = apply_tune(model, {"llm": lora()}, seed=0)
    assert table.parameters == expected
    assert f"{expected / 1e6:.2f}M parameters" in summary(base())


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_computed_in_the_type_of_the_weights(quantization: Quantization, dtype: torch.dtype):
    model = base().to(dtype)
    quantize(model, quantization)
    layer = model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    if quantization.kind == "nf4":
        assert layer.compute_dtype == dtype
    assert dequantized(layer.weight).dtype == dtype
    apply_tune(model, {"llm": lora()}, seed=0)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(**inputs()).logits.float().square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@KINDS
def test_a_head_in_fewer_bits_computes_the_loss_of_its_weights(quantization: Quantization):
    model = base(tied=False)
    quantize(model, quantization.model_copy(update={"groups": ["lm_head"]}))
    weight, targets = dequantized(model.lm_head.weight), torch.arange(5)
    hidden = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0), requires_grad=True)
    found, expected = head_nll(model.lm_head, hidden, targets)[0], label_nll(hidden, weight, targets)[0]
    assert torch.allclose(found, expected)
    grads = [torch.autograd.grad(loss, hidden)[0] for loss in (found, expected)]
    assert torch.allclose(*grads, atol=1e-6)


@KINDS
def test_evaluation_between_steps_changes_no_bit(quantization: Quantization):
    model = base()
    quantize(model, quantization)
    apply_tune(model, {"llm": lora()}, seed=0)
    before = fingerprint(model)
    outputs = logits(model.eval())
    assert torch.equal(logits(model.train()), outputs)
    assert fingerprint(model) == before


@KINDS
def test_the_fingerprint_knows_the_weights(quantization: Quantization):
    def found(change: float) -> str:
        model = base()
        with torch.no_grad():
            model.model.language_model.layers[1].mlp.up_proj.weight.mul_(change)
            model.model.language_model.layers[1].mlp.up_proj.weight[:, 0] += change - 1
        apply_tune(model, {"llm": lora()}, seed=0, quantization=quantization)
        quantize(model, quantization)
        return fingerprint(model)

    assert found(1.0) == found(1.0) != found(1.5)


# Adapters that were trained on them

TUNES = {
    "nf4": ({"llm": lora(), "merger": Group(mode="full")}, NF4),
    "nf4 and other groups": ({"llm": lora(rslora=True), "vision": lora(rslora=True, rank=2)}, NF4),
    "int8": ({"llm": lora()}, INT8),
    "loftq": ({"llm": lora(init="loftq", rank=16)}, NF4),
    "pissa": ({"llm": lora(init="pissa")}, NF4),
}


@pytest.mark.parametrize(("tune", "quantization"), TUNES.values(), ids=TUNES.keys())
def test_an_adapter_is_merged_into_the_full_precision_base(
    tune: dict[str, Group], quantization: Quantization, tmp_path: Path
):
    model = tuned(tune, quantization=quantization)
    trained = logits(model)
    save_adapter(model, tmp_path, "tiny")
    unmerged = logits(load_adapter(base(), tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path)), unmerged)
    assert (logits(merge_adapter(base(), tmp_path)) - unmerged).abs().max() < 1e-4
    held = json.loads((tmp_path / "qvl.json").read_text(encoding="utf-8"))["quantized"]
    assert (held["kind"], held["groups"], held["layers"]) == (quantization.kind, ["llm"], 21)
    # What the full precision changes is of the size that is recorded.
    assert 0 < (unmerged - trained).norm() / trained.norm() < 8 * held["error"]


def test_an_adapter_goes_back_onto_the_quantised_base_it_was_trained_on(tmp_path: Path):
    model = tuned({"llm": lora(), "merger": Group(mode="full")}, quantization=NF4)
    save_adapter(model, tmp_path, "tiny")
    again = base()
    quantize(again, NF4)
    assert torch.equal(logits(load_adapter(again, tmp_path)), logits(model))
    injected = load_adapter(base(), tmp_path)
    quantize(injected, NF4)
    assert torch.equal(logits(injected), logits(model))


def test_loftq_restores_a_part_of_what_nf4_loses(tmp_path: Path):
    whole = logits(base())
    distances, errors = [], []
    for init in ("zero", "loftq"):
        model = base()
        apply_tune(model, {"llm": lora(init=init, rank=32)}, seed=0, quantization=NF4)
        errors.append(quantize(model, NF4).error)
        distances.append((logits(model) - whole).norm().item())
        save_adapter(model, tmp_path / init, "tiny")
        # Nothing was trained, so on the full-precision base it is nothing.
        assert (logits(load_adapter(base(), tmp_path / init)) - whole).abs().max() < 2e-5
    assert errors[1] < 0.8 * errors[0]
    assert distances[1] < 0.9 * distances[0]


# What cannot be meant


@pytest.mark.parametrize(
    ("tune", "quantization", "sentence"),
    [
        ({"llm": Group(mode="full")}, NF4, r"tune\.llm: weights in fewer bits cannot be trained in full; use `lora`"),
        ({"llm": lora(dora=True)}, NF4, r"tune\.llm\.dora: needs full-precision weights; leave dora"),
        ({"llm": lora(dora=True)}, INT8, r"tune\.llm\.dora: needs full-precision weights"),
        ({"llm": lora(init="loftq")}, INT8, r"tune\.llm\.init: loftq makes up for what nf4 loses"),
        (
            {"llm": lora(), "vision": lora(init="loftq")},
            NF4,
            r"tune\.vision\.init: loftq .* set `model\.quantization: nf4` with vision",
        ),
        ({"llm": lora()}, Quantization(kind="nf4", groups=["lllm"]), r"model\.quantization: there is no group lllm"),
        (
            {"llm": lora()},
            Quantization(kind="nf4", groups=[]),
            r"model\.quantization\.groups: names no group; name llm",
        ),
        ({"llm": lora()}, Quantization(kind="nf4", groups=["embed"]), r"embed has no linear layers to hold in fewer"),
        ({"llm": lora()}, Quantization(kind="nf4", groups=["lm_head"]), r"lm_head shares the embedding's matrix"),
    ],
)
def test_what_does_not_go_together(tune: dict[str, Group], quantization: Quantization, sentence: str):
    with pytest.raises(BadInput, match=sentence):
        apply_tune(base(), tune, 0, quantization=quantization)


@pytest.mark.parametrize("block", [lora(dora=True), lora(init="pissa"), Group(mode="full")])
def test_a_model_that_was_quantised_before(block: Group):
    model = base()
    quantize(model, NF4)
    with pytest.raises(BadInput, match=r"tune\.llm"):
        apply_tune(model, {"llm": block}, 0)
    with pytest.raises(BadInput, match="the model is quantised already"):
        quantize(model, NF4)


@KINDS
def test_without_the_library(quantization: Quantization, monkeypatch: pytest.MonkeyPatch):
    def nothing(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(module, "find_spec", nothing)
    library = {"nf4": "bitsandbytes", "int8": "torchao"}[quantization.kind]
    with pytest.raises(BadInput, match=rf"needs {library}; run: pip install 'qvl-core\[quant\]'"):
        quantize(base(), quantization)


def test_merging_into_a_quantised_base_is_refused(tmp_path: Path):
    save_adapter(tuned({"llm": lora()}, quantization=NF4), tmp_path, "tiny")
    model = base()
    quantize(model, NF4)
    with pytest.raises(BadInput, match="cannot be merged into a quantised model; load the base in bf16 or fp32"):
        merge_adapter(model, tmp_path)


def test_what_was_trained_in_full_cannot_be_put_into_fewer_bits(tmp_path: Path):
    save_adapter(tuned({"llm": Group(mode="full"), "vision": lora()}), tmp_path, "tiny")
    model = base()
    quantize(model, NF4)
    with pytest.raises(BadInput, match="was trained in full, and is quantised in this model"):
        load_adapter(model, tmp_path)


def test_loading(tmp_path: Path):
    folder = tiny(tmp_path / "tiny")
    model, _ = load_model(Model(name=str(folder), quantization=NF4), precision="bf16", device="cpu")
    assert not model.training
    assert model.quantized.layers == 21
    assert logits(model).dtype == torch.bfloat16
    assert load_model(Model(name="tiny", quantization=INT8), precision="fp32", device="cpu")[0].quantized.kind == "int8"

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(BadInput, match=r"config\.json: the weights are quantised already \(bitsandbytes\); name the"):
        load_model(Model(name=str(folder)), precision="fp32", device="cpu")
