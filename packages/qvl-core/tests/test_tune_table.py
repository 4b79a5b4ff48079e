"""Every tune block trains exactly what it names: that has gradients, and after ten steps only that has changed.

What is expected is written down here a second time, by hand, from the architecture: which names belong to a group, and
which of its modules are linear layers.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
from adapted import TOKENIZER, base, inputs
from peft.tuners.lora import LoraLayer
from torch import nn

from qvl_core.qwen3vl.lora import apply_tune, parameter_groups
from qvl_core.qwen3vl.presets import meta_model
from qvl_core.qwen3vl.quantize import held, quantize
from qvl_core.qwen3vl.tiny import tiny_config
from qvl_core.recipe.blocks import Group, Optim, Quantization

STEPS = 10
LLM = r"model\.language_model\.layers\.\d+\."
PARTS = {
    "llm": r"model\.language_model\.(layers|norm)\.",
    "merger": r"model\.visual\.merger\.",
    "deepstack_mergers": r"model\.visual\.deepstack_merger_list\.",
    "vision": r"model\.visual\.(blocks|patch_embed|pos_embed)\.",
    "embed": r"model\.language_model\.embed_tokens\.",
    "lm_head": r"lm_head\.",
}
LINEAR = {
    "llm": LLM + r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "merger": r"model\.visual\.merger\.linear_fc[12]",
    "deepstack_mergers": r"model\.visual\.deepstack_merger_list\.[01]\.linear_fc[12]",
    "vision": r"model\.visual\.blocks\.\d\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
    "lm_head": "lm_head",
}
LAYERS = 3  # of the tiny model, in both


def expected(tune: Mapping[str, Group], model: nn.Module) -> set[str]:
    """Names of what is trained in a model that `tune` has not touched."""
    found = set()
    for name, _ in model.named_parameters():
        for group, block in tune.items():
            if not re.match(PARTS[group], name) or not _in_last_layers(name, block):
                continue
            module, _, kind = name.rpartition(".")
            if block.mode == "full":
                found.add(name)
            if block.mode == "lora" and kind == "weight" and re.fullmatch(LINEAR[group], module):
                found |= {f"{module}.lora_{matrix}.default.weight" for matrix in "AB"}
                if block.dora:
                    found.add(f"{module}.lora_magnitude_vector.default.weight")
    return found


def _in_last_layers(name: str, block: Group) -> bool:
    number = re.match(r"model\.(?:language_model\.layers|visual\.blocks)\.(\d+)\.", name)
    return block.layers is None or (number is not None and int(number[1]) >= LAYERS - block.layers)


def grid(tied: bool) -> list[dict[str, str]]:
    """All modes of all groups: where embedding and head are one matrix, they have one mode; a table has no LoRA."""
    body = product(("frozen", "lora", "full"), repeat=4)
    ends = [("frozen",) * 2, ("full",) * 2] if tied else [*product(("frozen", "full"), ("frozen", "lora", "full"))]
    blocks = [dict(zip(PARTS, (*modes, *end), strict=True)) for modes, end in product(body, ends)]
    return [modes for modes in blocks if set(modes.values()) != {"frozen"}]


GRID = [(tied, modes) for tied in (True, False) for modes in grid(tied)]
SAMPLE = GRID[:: len(GRID) // 12]


def lora(**settings: Any) -> Group:
    return Group.model_validate({"mode": "lora", "rank": 4, "alpha": 8, **settings})


VARIANTS: dict[str, tuple[dict[str, Group], Quantization | None]] = {
    "dora": ({"llm": lora(dora=True), "merger": Group(mode="full")}, None),
    "rslora and LoRA+": ({"llm": lora(rslora=True, plus=16), "vision": lora(rslora=True)}, None),
    "pissa": ({"llm": lora(init="pissa"), "vision": lora()}, None),
    "last layers": ({"llm": lora(layers=1), "vision": Group(mode="full", layers=2)}, None),
    "last layers in full": ({"llm": Group(mode="full", layers=2), "vision": lora(layers=1, dora=True)}, None),
    "dropout": ({"llm": lora(dropout=0.1), "merger": lora(dropout=0.1)}, None),
    "nf4": ({"llm": lora(), "merger": Group(mode="full")}, Quantization(kind="nf4")),
    "loftq": ({"llm": lora(init="loftq", layers=2)}, Quantization(kind="nf4")),
    "int8": ({"llm": lora(), "vision": lora(rank=2)}, Quantization(kind="int8")),
}


def check_names(tied: bool, modes: dict[str, str]) -> None:
    tune = {group: Group.model_validate({"mode": mode, "rank": 4}) for group, mode in modes.items()}
    model = meta_model(tiny_config(TOKENIZER, tied=tied))
    wanted = expected(tune, model)
    table = apply_tune(model, tune, seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == wanted
    assert table.trainable == sum(p.numel() for p in trained.values())
    grouped = [name for group in parameter_groups(model, tune, Optim()) for name in group.parameters]
    assert sorted(grouped) == sorted(trained)


def check_steps(tied: bool, tune: dict[str, Group], quantization: Quantization | None = None) -> None:
    model = base(tied)
    wanted = expected(tune, model)
    apply_tune(model, tune, seed=0, quantization=quantization)
    if quantization is not None:
        quantize(model, quantization)
    before = hashes(model.train())
    groups = parameter_groups(model, tune, Optim(lr=1e-2))
    optimizer = torch.optim.AdamW(
        [{"params": list(g.parameters.values()), "lr": g.lr, "weight_decay": g.weight_decay} for g in groups]
    )
    given = inputs()
    for _ in range(STEPS):
        logits = model(**given).logits[:, :-1].flatten(0, 1)
        nn.functional.cross_entropy(logits, given["input_ids"][:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = hashes(model)
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} == wanted


def hashes(model: nn.Module) -> dict[str, str]:
    """Of every parameter and buffer."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: hashlib.sha256(held(tensor).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }


def told(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{group}-{mode}" for group, mode in value.items() if mode != "frozen")
    return "tied" if value else "apart"


@pytest.mark.parametrize(("tied", "modes"), SAMPLE, ids=told)
def test_names(tied: bool, modes: dict[str, str]):
    check_names(tied, modes)


@pytest.mark.slow
def test_names_of_all():
    for tied, modes in GRID:
        check_names(tied, modes)


@pytest.mark.parametrize(("tied", "modes"), SAMPLE[::3], ids=told)
def test_ten_steps(tied: bool, modes: dict[str, str]):
    check_steps(tied, {group: Group.model_validate({"mode": mode, "rank": 4}) for group, mode in modes.items()})


@pytest.mark.parametrize(("tune", "quantization"), VARIANTS.values(), ids=VARIANTS.keys())
def test_ten_steps_of_variants(tune: dict[str, Group], quantization: Quantization | None):
    check_steps(True, tune, quantization)


@pytest.mark.slow
def test_ten_steps_of_all():
    for tied, modes in GRID:
        check_steps(tied, {group: Group.model_validate({"mode": mode, "rank": 4}) for group, mode in modes.items()})


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_is_what_was_asked_for(dropout: float):
    model = base()
    apply_tune(model, {"llm": lora(dropout=dropout)}, seed=0)
    layers = [module.lora_dropout["default"] for module in model.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 7 * LAYERS
    assert model.peft_config["default"].lora_dropout == dropout
    assert all(layer.p == dropout if dropout else isinstance(layer, nn.Identity) for layer in layers)


def test_the_grid_is_whole():
    assert len(grid(tied=True)) == 3**4 * 2 - 1
    assert len(grid(tied=False)) == 3**4 * 6 - 1
