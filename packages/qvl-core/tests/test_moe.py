"""Models with experts: LoRA adapts attention; the fused experts are parameters, which stay or are trained in full."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import inputs, logits, move
from peft import PeftModel
from transformers import Qwen3VLMoeForConditionalGeneration

from qvl_core.qwen3vl.lora import apply_tune, load_adapter, merge_adapter, save_adapter
from qvl_core.qwen3vl.quantize import quantize
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Group, Quantization

LORA = Group(mode="lora", rank=4, alpha=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL with four experts, two of them for each token."""
    return tiny(tmp_path_factory.mktemp("moe") / "tiny", tied=False, experts=4)


def base(folder: Path) -> Any:
    return Qwen3VLMoeForConditionalGeneration.from_pretrained(folder).eval()


@pytest.mark.parametrize("rest", [{}, {"merger": Group(mode="full"), "vision": LORA}], ids=["llm", "more"])
@pytest.mark.parametrize("block", [LORA, Group(mode="lora", rank=4, init="pissa", layers=2)], ids=["zero", "pissa"])
def test_lora_on_attention(folder: Path, block: Group, rest: dict[str, Group], tmp_path: Path):
    model = base(folder)
    apply_tune(model, {"llm": block, **rest}, seed=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "language_model" in name]
    assert len(trained) == 2 * 4 * (block.layers or 3)
    assert all(".self_attn." in name for name in trained)
    model.train()(**inputs()).logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    expected = logits(move(model).eval())
    save_adapter(model, tmp_path / "adapter", str(folder))
    assert (logits(load_adapter(base(folder), tmp_path / "adapter")) - expected).abs().max() < 2e-5
    assert (logits(PeftModel.from_pretrained(base(folder), tmp_path / "adapter")) - expected).abs().max() < 2e-5
    merged = merge_adapter(base(folder), tmp_path / "adapter")
    assert (logits(merged) - expected).abs().max() < 2e-5
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(base(tmp_path / "merged")), logits(merged))


def test_experts_are_trained_in_full(folder: Path):
    model = base(folder)
    apply_tune(model, {"llm": Group(mode="full", layers=1)}, seed=0)
    model.train()(**inputs()).logits.square().mean().backward()
    experts = model.model.language_model.layers[2].mlp.experts
    assert experts.gate_up_proj.grad.abs().sum() > 0
    assert model.model.language_model.layers[1].mlp.experts.gate_up_proj.grad is None


def test_attention_in_fewer_bits(folder: Path):
    model = base(folder)
    found = quantize(model, Quantization(kind="nf4"))
    assert found.layers == 4 * 3
    assert model.model.language_model.layers[0].mlp.experts.down_proj.dtype == torch.float32
    assert logits(model).isfinite().all()
