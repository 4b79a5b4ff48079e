"""What is trained of the transformer: groups by pieces of names, and what nothing depends on."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.groups import group_of
from qvl_core.qwen3vl.lora import apply_tune, parameter_groups
from qvl_core.recipe.blocks import Group, Optim
from qvl_edit.groups import groups, unused

LAYERS = 2


def transformer(zero_cond_t: bool = False) -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
    )


def predicted(model: QwenImageTransformer2DModel, text: bool = True) -> torch.Tensor:
    """Of two samples with a target of 2 x 2 tokens and a source of 2 x 4."""
    torch.manual_seed(1)
    velocity: torch.Tensor = model(
        hidden_states=torch.randn(2, 12, 16),
        encoder_hidden_states=torch.randn(2, 5, 24),
        encoder_hidden_states_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool),
        timestep=torch.tensor([0.3, 0.9]),
        img_shapes=[[(1, 2, 2), (1, 2, 4)]] * 2,
        return_dict=False,
    )[0][:, :4]
    return velocity


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_unused_is_exactly_what_gets_no_gradient(zero_cond_t: bool) -> None:
    model = transformer(zero_cond_t)
    predicted(model).square().sum().backward()
    without = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    named = {name for name, _ in model.named_parameters() if re.fullmatch(unused(LAYERS), name)}
    assert named == without
    assert {name.split(".", 2)[2].rsplit(".", 1)[0] for name in named} == {
        "attn.to_add_out",
        "attn.add_q_proj",
        "attn.norm_added_q",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    }


def test_unused_parts_do_not_change_a_prediction() -> None:
    model = transformer()
    before = predicted(model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if re.fullmatch(unused(LAYERS), name):
                value.normal_()
    assert torch.equal(predicted(model), before)


def tuned(tune: Mapping[str, Any]) -> tuple[QwenImageTransformer2DModel, dict[str, set[str]]]:
    """A model under `tune`, and what is trained, by group."""
    model = transformer()
    blocks = {name: Group.model_validate(block) for name, block in tune.items()}
    patterns = groups(blocks, LAYERS)
    apply_tune(model, blocks, seed=0, groups=patterns)
    trained: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained.setdefault(group_of(name, patterns), set()).add(name)
    return model, trained


NAMES = {name for name, _ in transformer().named_parameters()}
USED = {name for name in NAMES if not re.fullmatch(unused(LAYERS), name)}


@pytest.mark.parametrize("name", ["transformer", "."])
def test_everything_is_all_that_is_used(name: str) -> None:
    model, trained = tuned({name: {"mode": "full"}})
    assert trained == {name: USED}
    predicted(model).square().sum().backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_a_piece_of_a_name_is_a_group() -> None:
    _, trained = tuned({"attn.to_q": {"mode": "full"}, "img_mlp": {"mode": "full"}})
    assert trained == {
        "attn.to_q": {name for name in USED if "attn.to_q" in name},
        "img_mlp": {name for name in USED if "img_mlp" in name},
    }


def test_the_first_name_that_fits_counts_and_transformer_is_the_rest() -> None:
    full = {"mode": "full"}
    _, trained = tuned({"transformer": full, "blocks.0.attn": full, "attn.": full, "txt_mod": {"mode": "frozen"}})
    first = {name for name in USED if "blocks.0.attn" in name}
    second = {name for name in USED if "blocks.1.attn." in name}
    assert trained["blocks.0.attn"] == first
    assert trained["attn."] == second
    assert trained["transformer"] == {name for name in USED - first - second if "txt_mod" not in name}


def test_every_parameter_is_in_exactly_one_group() -> None:
    for names in ((), ("attn", "to_q"), ("to_q", "attn."), (".", "attn"), ("transformer_blocks.1.",)):
        patterns = groups(names, LAYERS)
        for name in NAMES:
            assert sum(bool(re.fullmatch(pattern, name)) for pattern in patterns.values()) == 1, (names, name)


def test_lora_of_two_ranks() -> None:
    model, trained = tuned(
        {
            "blocks.1.": {"mode": "lora", "rank": 2},
            "attn.": {"mode": "lora", "rank": 4},
            "mod": {"mode": "lora", "rank": 8},
        }
    )
    ranks = {
        name.removesuffix(".lora_A.default.weight"): len(value)
        for name, value in model.named_parameters()
        if "lora_A" in name
    }
    assert ranks
    for name, rank in ranks.items():
        assert rank == (2 if "blocks.1." in name else 4 if "attn." in name else 8), name
    assert not any(re.fullmatch(unused(LAYERS), f"{name}.weight") for name in ranks)
    assert set(trained) == {"blocks.1.", "attn.", "mod"}
    loss = predicted(model).square().sum()
    loss.backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_rates_and_table_of_groups() -> None:
    model = transformer()
    tune = {"img_in": Group(mode="full", lr=1e-5), "transformer": Group(mode="full")}
    table = apply_tune(model, tune, seed=0, optim=Optim(lr=2e-5), groups=groups(tune, LAYERS))
    assert [(row.group, row.mode) for row in table.rows] == [
        ("img_in", "full"),
        ("transformer", "full"),
        ("unused", "frozen"),
    ]
    assert table.parameters == sum(value.numel() for value in model.parameters())
    rates = {group.name: group.lr for group in parameter_groups(model, tune, Optim(lr=2e-5), groups(tune, LAYERS))}
    assert rates == {"img_in": 1e-5, "img_in (no decay)": 1e-5, "transformer": 2e-5, "transformer (no decay)": 2e-5}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("atn", "tune.atn: this model has no such parameters; remove the group or set it to frozen."),
        ("attn.to_q.weight", "tune.attn.to_q.weight: names a weight, not a module; write attn.to_q."),
        ("bias", "tune.bias: names a weight, not a module; write transformer."),
    ],
)
def test_names_that_fit_nothing(name: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        tuned({name: {"mode": "lora"}})
    assert said == str(caught.value)
