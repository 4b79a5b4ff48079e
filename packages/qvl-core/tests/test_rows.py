"""Rows of the embedding beside LoRA: trained alone, in peft's own layout, and in the matrix after a merge."""

from pathlib import Path

import pytest
import torch
from adapted import base, inputs, logits, move
from peft import PeftModel
from safetensors.torch import load_file, save_file

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.lora import apply_tune, load_adapter, merge_adapter, parameter_groups, save_adapter
from qvl_core.qwen3vl.rows import NAME
from qvl_core.recipe.blocks import Group, Optim

ROW = 17  # of the tokens of `inputs`
LORA = {"llm": Group(mode="lora", rank=4, alpha=8)}
KEY = "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta"


def others(values: torch.Tensor) -> torch.Tensor:
    """Logits of all tokens but that of the row."""
    return values[..., torch.arange(values.shape[-1]) != ROW]


@pytest.mark.parametrize("tied", [True, False])
def test_only_these_rows_are_trained(tied: bool) -> None:
    model = base(tied)
    table = apply_tune(model, LORA, seed=0, rows=(ROW,))
    width = model.config.text_config.hidden_size
    (row,) = [row for row in table.rows if row.group == "embed"]
    assert (row.mode, row.trainable, row.weight_decay) == ("rows", width, 0.0)
    assert table.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert torch.equal(logits(model), logits(base(tied)))
    (group,) = [group for group in parameter_groups(model, LORA, Optim(lr=1e-3)) if group.name.startswith("embed")]
    assert (group.lr, group.weight_decay, [name.rpartition(".")[2] for name in group.parameters]) == (1e-3, 0, [NAME])

    embedding = model.get_input_embeddings()
    frozen = embedding.weight.clone()
    model.train()(**inputs()).logits.square().mean().backward()
    (gradient,) = [p.grad for p in group.parameters.values()]
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert embedding.weight.grad is None
    assert torch.equal(embedding.weight, frozen)


@pytest.mark.parametrize("tied", [True, False])
def test_they_go_with_the_adapter(tied: bool, tmp_path: Path) -> None:
    model = base(tied)
    apply_tune(model, LORA, seed=0, rows=(ROW,))
    expected = logits(move(model).eval())
    save_adapter(model, tmp_path, "base")
    assert load_file(tmp_path / "adapter_model.safetensors")[KEY].shape == (1, model.config.text_config.hidden_size)

    again = load_adapter(base(tied), tmp_path)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert (logits(again) - expected).abs().max() < 1e-5
    with_peft = PeftModel.from_pretrained(base(tied), tmp_path)
    merged = merge_adapter(base(tied), tmp_path)
    assert type(merged.get_input_embeddings()) is torch.nn.Embedding
    assert not any(NAME in name for name in merged.state_dict())
    for theirs in (logits(with_peft), logits(merged)):
        assert (others(theirs) - others(expected)).abs().max() < 1e-5
        if not tied:
            assert (theirs - expected).abs().max() < 1e-5
    assert (logits(with_peft) - logits(merged)).abs().max() < 1e-5
    continued = base(tied)
    apply_tune(continued, LORA, seed=0, rows=(ROW,))
    assert torch.equal(logits(load_adapter(continued, tmp_path)), logits(again))


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    for tune in ({"llm": Group(mode="full")}, LORA | dict.fromkeys(("embed", "lm_head"), Group(mode="full"))):
        with pytest.raises(BadInput, match="rows of the embedding are trained beside LoRA and with embed frozen"):
            apply_tune(base(), tune, seed=0, rows=(ROW,))
    model = base()
    apply_tune(model, LORA, seed=0, rows=(ROW,))
    save_adapter(model, tmp_path, "base")
    for rows in ((), (ROW + 1,)):
        other = base()
        apply_tune(other, LORA, seed=0, rows=rows)
        with pytest.raises(BadInput, match=r"rows of the embedding are trained there \(\[17\]\) and here"):
            load_adapter(other, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    values = load_file(file)
    del values[KEY]
    save_file(values, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="trainable_tokens_delta is missing"):
        load_adapter(base(), tmp_path)
