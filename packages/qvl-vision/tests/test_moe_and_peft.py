"""The class with experts, plain PEFT, and frozen groups as a recipe names them."""

import pytest
import torch
from encoders import write_encoder
from peft import LoraConfig, PeftModel, get_peft_model
from samples import encoded, library_inputs
from transformers import AutoModelForImageTextToText, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.lora import apply_tune, load_adapter, save_adapter
from qvl_core.qwen3vl.tiny import tiny_config, tiny_processor
from qvl_core.recipe.blocks import Group
from qvl_vision import load, save, swap, verify

ATTENTION = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"


@pytest.fixture(scope="module")
def moe_base(tmp_path_factory):
    """A tiny Qwen3-VL with experts."""
    processor = tiny_processor()
    dense = tiny_config(processor.tokenizer)
    text = dense.text_config.to_dict() | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "decoder_sparse_step": 1,
    }
    text.pop("model_type")
    vision = dense.vision_config.to_dict()
    vision.pop("model_type")
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen3VLMoeConfig(
            text_config=text, vision_config=vision, **{name: getattr(dense, name) for name in tokens}
        )
        model = Qwen3VLMoeForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("moe") / "tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("encoder", ["native", "dinov2"])
def test_experts(moe_base, encoders, encoder, tmp_path):
    stock = Qwen3VLMoeForConditionalGeneration.from_pretrained(moe_base).eval()
    native = encoder == "native"
    model, processor = swap(moe_base, encoder if native else str(encoders[encoder]), "native" if native else "linear")
    assert type(model).__name__ == "QVLMoeForConditionalGeneration"
    inputs = library_inputs(processor)
    with torch.no_grad():
        logits = model(**inputs).logits
        if native:
            assert torch.equal(logits, stock(**inputs).logits)
    save(model, processor, tmp_path / "saved")
    verify(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved")[0](**inputs).logits, logits)


@pytest.mark.parametrize("encoder", ["clip", "siglip", "dinov2", "dinov3"])
def test_plain_peft(base, encoders, encoder, tmp_path):
    """LoRA by a pattern that names the language model, the merger in modules_to_save: nothing of the tower's."""
    model, processor = swap(base, str(encoders[encoder]), input_norm=encoder == "dinov2")
    save(model, processor, tmp_path / "base")
    config = LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["merger"])
    tuned = get_peft_model(model, config)
    learned = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert all(".language_model." in name or ".merger." in name for name in learned)
    inputs = library_inputs(processor)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        tuned(**inputs).logits.square().mean().backward()
        optimizer.step()
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.eval()
    fresh = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = tuned(**inputs).logits
        assert torch.equal(again(**inputs).logits, expected)
        merged = again.merge_and_unload()(**inputs).logits
    assert torch.allclose(merged, expected, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_groups_of_a_recipe(base, encoders, tmp_path):
    """LoRA on the language model and the merger in full; LoRA in the tower only where it is asked for."""
    model, processor = swap(base, str(encoders["siglip"]))
    save(model, processor, tmp_path / "base")
    tune = {"llm": Group(mode="lora", rank=2), "merger": Group(mode="full")}
    apply_tune(model, tune, seed=0)
    assert not any("lora" in name for name, _ in model.model.visual.named_parameters())
    batch = collate([encoded(processor)], True, 1, pad_id=0)
    start = model.model.visual.merger.proj.weight.detach().clone()
    learned = [p for p in model.parameters() if p.requires_grad]
    model.model(**batch.inputs(), use_cache=False).last_hidden_state.square().mean().backward()
    torch.optim.SGD(learned, 0.1).step()
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    fresh = load_adapter(load(tmp_path / "base")[0], tmp_path / "adapter")
    assert not torch.equal(fresh.model.visual.merger.proj.weight, start)
    assert torch.equal(fresh.model.visual.merger.proj.weight, model.model.visual.merger.proj.weight)

    asked, _ = swap(base, str(encoders["siglip"]))
    apply_tune(asked, tune | {"vision": Group(mode="lora", rank=2)}, seed=0)
    assert any("lora" in name for name, _ in asked.model.visual.encoder.named_parameters())
    assert not any("lora" in name for name, _ in asked.model.visual.merger.named_parameters())


def test_recompute_changes_no_gradient(base, tmp_path):
    folder = write_encoder("dinov2", tmp_path / "encoder")

    def gradient(recompute):
        model, processor = swap(base, str(folder))
        apply_tune(model, {"llm": Group(mode="lora", rank=2), "merger": Group(mode="full")}, seed=0)
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        batch = collate([encoded(processor)], True, 1, pad_id=0)
        model.model(**batch.inputs(), use_cache=False).last_hidden_state.square().mean().backward()
        return model.model.visual.merger.proj.weight.grad

    assert torch.allclose(gradient(False), gradient(True), atol=1e-7)


def test_every_weight_of_the_tower_has_a_group_and_fsdp_finds_blocks(base, encoders):
    from qvl_core.qwen3vl.groups import group_of

    for name, blocks in (("dinov2", 3), ("clip", 3), ("siglip2", 3), ("swin", 2), ("timm_vit", 2), ("convnext", 0)):
        model, _ = swap(base, str(encoders[name]), deepstack=[0] if blocks == 3 else ())
        groups = {group_of(parameter) for parameter, _ in model.named_parameters()}
        assert {"llm", "merger", "vision"} <= groups
        found = model.model.visual.blocks
        assert len(found) == blocks
        assert not any(one is not other and other in one.modules() for one in found for other in found)
