"""Every parameter of every preset has exactly one group; adapters follow the module they adapt."""

import re

import pytest
import torch

from qvl_core.qwen3vl.groups import GROUPS, decays, group_of, linear_targets
from qvl_core.qwen3vl.presets import PRESETS, config, meta_model


@pytest.mark.parametrize("preset", PRESETS)
def test_groups_cover_every_parameter_once(preset: str):
    for name, _ in meta_model(config(preset)).named_parameters(remove_duplicate=False):
        matching = [group for group, pattern in GROUPS.items() if re.fullmatch(pattern, name)]
        assert matching == [group_of(name)], name


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.language_model.layers.3.self_attn.q_norm.weight", "llm"),
        ("model.language_model.layers.3.mlp.up_proj.lora_A.default.weight", "llm"),
        ("model.language_model.layers.3.mlp.up_proj.base_layer.weight", "llm"),
        ("model.language_model.norm.weight", "llm"),
        ("model.language_model.embed_tokens.weight", "embed"),
        ("model.visual.merger.linear_fc1.bias", "merger"),
        ("model.visual.deepstack_merger_list.2.norm.weight", "deepstack_mergers"),
        ("model.visual.patch_embed.proj.weight", "vision"),
        ("model.visual.encoder.layers.0.mlp.fc1.weight", "vision"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_group_of(name: str, group: str):
    assert group_of(name) == group


def test_groups_are_open():
    more = {**GROUPS, "connector": r"connector\..*"}
    assert group_of("connector.layers.0.weight", more) == "connector"
    with pytest.raises(KeyError, match=r"connector\.layers\.0\.weight.*llm, merger"):
        group_of("connector.layers.0.weight")


def test_linear_targets_are_the_documented_modules():
    model = meta_model(config("Qwen3-VL-2B"))
    kinds = {
        "llm": r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "merger": r"model\.visual\.merger\.linear_fc[12]",
        "deepstack_mergers": r"model\.visual\.deepstack_merger_list\.\d\.linear_fc[12]",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        "lm_head": r"lm_head",
    }
    counts = {"llm": 28 * 7, "merger": 2, "deepstack_mergers": 6, "vision": 24 * 4, "lm_head": 1}
    for group, kind in kinds.items():
        targets = linear_targets(model, group)
        assert len(targets) == counts[group]
        assert all(re.fullmatch(kind, name) for name in targets)
    assert linear_targets(model, "embed") == []


def test_no_decay_on_norms_biases_and_embeddings():
    kept = {name for name, p in meta_model(config("Qwen3-VL-8B")).named_parameters() if not decays(name, p)}
    decayed = {name for name, p in meta_model(config("Qwen3-VL-8B")).named_parameters() if decays(name, p)}
    assert all(re.search(r"norm\d?\.weight|bias|embed_tokens|pos_embed|[qk]_norm", name) for name in kept)
    assert not any(re.search(r"norm|bias|embed_tokens|pos_embed", name) for name in decayed)
    assert {"lm_head.weight", "model.visual.patch_embed.proj.weight"} <= decayed
    assert decays("model.language_model.layers.0.mlp.up_proj.lora_A.default.weight", torch.zeros(2, 2))
    assert not decays("model.visual.embeddings.position_embedding.weight", torch.zeros(2, 2))
