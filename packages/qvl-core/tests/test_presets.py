"""The shape presets give the released models' parameter counts exactly, without any file of theirs."""

import pytest

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.groups import GROUPS, linear_targets
from qvl_core.qwen3vl.presets import PRESETS, config, count_parameters, meta_model, preset_for


@pytest.mark.parametrize(
    ("preset", "total", "llm", "embed", "lm_head"),
    [
        ("Qwen3-VL-2B", 2_127_532_032, 1_409_410_048, 311_164_928, 0),
        ("Qwen3-VL-4B", 4_437_815_808, 3_633_511_936, 388_956_160, 0),
        ("Qwen3-VL-8B", 8_767_123_696, 6_946_075_648, 622_329_856, 622_329_856),
        ("Qwen3-VL-32B", 33_357_390_064, 31_206_298_624, 777_912_320, 777_912_320),
        ("Qwen3-VL-30B-A3B", 31_070_754_032, 29_909_792_768, 311_164_928, 311_164_928),
    ],
)
def test_parameters_are_exact(preset: str, total: int, llm: int, embed: int, lm_head: int):
    counts = count_parameters(config(preset))
    assert sum(counts.values()) == total
    assert (counts["llm"], counts["embed"], counts["lm_head"]) == (llm, embed, lm_head)
    assert set(counts) == set(GROUPS)


@pytest.mark.parametrize(
    ("preset", "millions"), [("Qwen3-VL-2B", 17.43), ("Qwen3-VL-4B", 33.03), ("Qwen3-VL-8B", 43.65)]
)
def test_lora_on_all_seven_linears_of_the_language_model(preset: str, millions: float):
    model = meta_model(config(preset))
    targets = [model.get_submodule(name) for name in linear_targets(model, "llm")]
    assert len(targets) == 7 * len(model.model.language_model.layers)
    added = sum(16 * (linear.in_features + linear.out_features) for linear in targets)
    assert round(added / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL-4B"),
        ("qwen/qwen3-vl-30b-a3b-thinking", "Qwen3-VL-30B-A3B"),
        ("runs/Qwen3-VL-2B_merged", "Qwen3-VL-2B"),
        ("Qwen/Qwen3-VL-32B-Instruct-FP8", "Qwen3-VL-32B"),
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", None),
        ("Qwen/Qwen2.5-VL-7B-Instruct", None),
        ("tiny", None),
    ],
)
def test_model_names(name: str, preset: str | None):
    assert preset_for(name) == preset


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(BadInput, match=f"no shape preset 'Qwen3-VL-7B'; there are {PRESETS[0]}"):
        config("Qwen3-VL-7B")
