"""Adapter folders of plain peft, Unsloth, ms-swift and LLaMA-Factory mean here what they mean there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import TOKENIZER, base, logits, move, tuned
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.adapter import _key
from qvl_core.qwen3vl.foreign import today
from qvl_core.qwen3vl.lora import apply_tune, load_adapter, merge_adapter, save_adapter
from qvl_core.qwen3vl.tiny import tiny, tiny_config
from qvl_core.recipe.blocks import Group

LLM = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# As Unsloth writes it for vision and language, attention and MLP.
UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv|proj|linear_fc1|linear_fc2).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj|"
    r"v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
SWIFT = r"^(model\.language_model(?=\.).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj))$"

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "ranks": {
        "target_modules": LLM,
        "rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 8},
        "alpha_pattern": {"down_proj": 3},
    },
    "rslora and dora": {"target_modules": LLM, "use_rslora": True, "use_dora": True},
    "llama-factory, additional_target": {
        "target_modules": LLM,
        "modules_to_save": ["merger", "deepstack_merger_list.1"],
    },
    "embedding and head": {"target_modules": LLM, "modules_to_save": ["embed_tokens", "lm_head"]},
    "head alone": {"target_modules": LLM, "modules_to_save": ["lm_head"]},
    "embedding alone": {"target_modules": LLM, "modules_to_save": ["embed_tokens"]},
    "adapted head": {"target_modules": [*LLM, "lm_head"], "alpha_pattern": {"lm_head": 3}},
    "unsloth": {"target_modules": UNSLOTH, "task_type": "CAUSAL_LM"},
    "ms-swift": {"target_modules": SWIFT, "task_type": "CAUSAL_LM"},
    "some layers": {"target_modules": LLM, "layers_to_transform": [1, 2], "layers_pattern": "layers"},
    "gaussian": {"target_modules": LLM, "init_lora_weights": "gaussian", "bias": "all"},
}


def made(folder: Path, tied: bool = True, **settings: Any) -> Tensor:
    """A folder as plain peft writes it after training, and the logits of what it was."""
    model = get_peft_model(base(tied), LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    move(model).eval()
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize(
    ("name", "tied"), [*((name, True) for name in CONFIGS), ("embedding and head", False), ("adapted head", False)]
)
def test_a_folder_means_the_same(name: str, tied: bool, tmp_path: Path):
    expected = made(tmp_path / "adapter", tied, **CONFIGS[name])
    assert (expected - logits(base(tied))).abs().max() > 1e-2
    loaded = load_adapter(base(tied), tmp_path / "adapter")
    assert (logits(loaded) - expected).abs().max() < 1e-5
    merged = merge_adapter(base(tied), tmp_path / "adapter")
    assert (logits(merged) - expected).abs().max() < 2e-5
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(logits(again), logits(merged))


def test_a_tower_that_ms_swift_trained_in_full_lies_beside_the_adapter(tmp_path: Path):
    model = get_peft_model(base(), LoraConfig(r=4, target_modules=SWIFT))
    model.base_model.model.model.visual.requires_grad_(True)
    move(model).eval()
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(tmp_path, state_dict=state)
    save_file({name: value for name, value in state.items() if ".visual." in name}, tmp_path / "vit.safetensors")
    for name in ("additional_config.json", "args.json", "trainer_state.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert (logits(load_adapter(base(), tmp_path)) - logits(model)).abs().max() < 1e-5
    assert (logits(PeftModel.from_pretrained(base(), tmp_path)) - logits(model)).abs().max() > 1e-2  # it is not read


def rename(folder: Path, change: Callable[[str], str], **config: Any) -> None:
    file, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file({change(key): value for key, value in load_file(file).items()}, file)
    values = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(values | config), encoding="utf-8")


LAYOUTS: dict[str, tuple[Callable[[str], str], dict[str, Any]]] = {
    "the adapter's name in the keys": (
        lambda key: key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
        {},
    ),
    "no prefix of peft": (lambda key: key.removeprefix("base_model.model."), {}),
    "modules_to_save in the keys": (lambda key: key.replace(".merger.", ".merger.modules_to_save.default."), {}),
    "before transformers 4.52": (
        lambda key: key.replace("model.model.visual.", "model.visual.").replace("model.language_model.", "model."),
        {"target_modules": r"^model\.layers\..*_proj|^visual\.blocks\..*\.(qkv|proj|linear_fc1|linear_fc2)"},
    ),
    "the language model as vLLM names it": (
        lambda key: key.replace("model.model.visual.", "model.visual.").replace(
            "base_model.model.model.language_model.", "base_model.model.language_model.model."
        ),
        {"target_modules": r"language_model\.model\.layers\..*_proj|visual\.blocks\..*"},
    ),
}


@pytest.mark.parametrize(("change", "config"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_other_layouts_of_the_keys(change: Callable[[str], str], config: dict[str, Any], tmp_path: Path):
    vision = [r"blocks\.\d+\.attn\.qkv", r"blocks\.\d+\.attn\.proj", r"blocks\.\d+\.mlp\.linear_fc[12]"]
    target = "|".join([*(rf".*\.{name}" for name in LLM), *(rf".*visual\.{name}" for name in vision)])
    expected = made(tmp_path, target_modules=target, rank_pattern={"qkv": 2}, modules_to_save=["merger"])
    rename(tmp_path, change, **config)
    assert (logits(load_adapter(base(), tmp_path)) - expected).abs().max() < 1e-5


def test_todays_keys_are_left_alone():
    model = tuned({"llm": Group(mode="lora", dora=True), "vision": Group(mode="lora", dora=True)})
    for name, _ in model.named_parameters():
        assert today(_key(name)) == _key(name)


def test_values_of_16_bits(tmp_path: Path):
    expected = made(tmp_path, target_modules=LLM)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file)
    loaded = load_adapter(base(), tmp_path)
    assert all(p.dtype == torch.float32 for name, p in loaded.named_parameters() if ".lora_" in name)
    assert 0 < (logits(loaded) - expected).abs().max() < 0.1


# What is refused


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"modules_to_save": ["merger"]}, "model.visual.merger.linear_fc1.bias"),
        ({"bias": "all"}, "model.visual.blocks.0.attn.proj.bias"),
    ],
)
def test_what_a_continued_run_would_lose(settings: dict[str, Any], lost: str, tmp_path: Path):
    """An adapter's export holds what is trained; what was trained in full before and is frozen now would be missing."""
    made(tmp_path, target_modules=LLM, **settings)
    model = base()
    apply_tune(model, {"llm": Group(mode="lora", rank=4, alpha=6)}, seed=0)
    with pytest.raises(BadInput, match=f"{re.escape(lost)} was trained in full, and is frozen here; train it as well"):
        load_adapter(model, tmp_path)


def test_an_unknown_key_is_an_error_that_names_it(tmp_path: Path):
    made(tmp_path, target_modules=LLM)
    file = tmp_path / "adapter_model.safetensors"
    key = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_C.weight"
    save_file({**load_file(file), key: torch.zeros(2)}, file)
    with pytest.raises(BadInput, match=r"layers\.0\.self_attn\.q_proj\.lora_C\.weight is not in this model"):
        load_adapter(base(), tmp_path)


@pytest.mark.filterwarnings("error:Unexpected keyword arguments")
def test_keys_of_other_versions_that_say_nothing(tmp_path: Path):
    expected = made(tmp_path, target_modules=LLM)
    old = {"enable_lora": None, "merge_weights": False, "megatron_core": "megatron.core", "lora_ga_config": {}}
    new = {"use_next": False, "next_config": None, "next_tokens": [], "qalora_group_size": 16, "use_qalora": False}
    unsloth = {"auto_mapping": {"base_model_class": "Qwen3VLForConditionalGeneration", "unsloth_fixed": True}}
    rename(tmp_path, lambda key: key, **old, **new, **unsloth, peft_version="0.99.0")
    assert (logits(load_adapter(base(), tmp_path)) - expected).abs().max() < 1e-5


def test_other_methods_of_peft(tmp_path: Path):
    settings = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    get_peft_model(base(), IA3Config(**settings)).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"adapter_config\.json: IA3 is not LoRA; merge it"):
        load_adapter(base(), tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "it starts from pissa_niter_4, which changes the base's weights"),
        ({"init_lora_weights": "olora"}, "it starts from olora, which changes"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, r"LoRA on fused experts \(target_parameters\) is not"),
        ({"target_modules": ["c_attn"]}, r"adapter_config\.json: does not fit this model \(.*c_attn"),
        ({"peft_type": "NEVER"}, r"adapter_config\.json: cannot be read"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is not known here; use the adapter with peft"),
        ({"trainable_token_indices": {"lm_head": [5]}}, "trains tokens of other layers than embed_tokens; merge it"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is not known here"),
        ({"use_kasa": True}, r"adapter_config\.json: use_kasa is known neither here nor to the peft that is installed"),
    ],
)
def test_what_is_refused(config: dict[str, Any], sentence: str, tmp_path: Path):
    made(tmp_path, target_modules=LLM)
    rename(tmp_path, lambda key: key, **config)
    with pytest.raises(BadInput, match=sentence) as caught:
        load_adapter(base(), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_file(tmp_path: Path):
    made(tmp_path, target_modules=LLM)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors: cannot be read \(.*\); copy it again"):
        load_adapter(base(), tmp_path)


def of_size(**text: int) -> nn.Module:
    config = tiny_config(TOKENIZER)
    for key, value in text.items():
        setattr(config.text_config, key, value)
    return type(base())(config)


def test_a_base_of_another_shape(tmp_path: Path):
    made(tmp_path, target_modules=LLM)
    with pytest.raises(BadInput, match=r"lora_.\.weight is \(.*\) but \(.*\) in this model"):
        load_adapter(of_size(intermediate_size=352), tmp_path)
    with pytest.raises(BadInput, match=r"layers\.2\..* is not in this model; use the base"):
        load_adapter(of_size(num_hidden_layers=2), tmp_path)
    with pytest.raises(BadInput, match=r"layers\.3\..* is missing"):
        load_adapter(of_size(num_hidden_layers=4), tmp_path)


def test_a_base_of_the_same_shape_with_other_weights(tmp_path: Path):
    kind = type(base())
    one, other = tiny(tmp_path / "one"), tiny(tmp_path / "other", seed=1)
    model = kind.from_pretrained(one)
    apply_tune(model, {"llm": Group(mode="lora", rank=4)}, seed=0)
    save_adapter(model, tmp_path / "adapter", str(one))
    load_adapter(kind.from_pretrained(one), tmp_path / "adapter")
    with pytest.raises(BadInput, match=r"adapter: was trained on other weights than those in .*other; use the base"):
        load_adapter(kind.from_pretrained(other), tmp_path / "adapter")

    # The same weights in another type, in other files, with another name, are the same base.
    kind.from_pretrained(one, dtype=torch.bfloat16).save_pretrained(tmp_path / "half", max_shard_size="1MB")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    load_adapter(kind.from_pretrained(tmp_path / "half"), tmp_path / "adapter")
