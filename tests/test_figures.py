"""The figures that pages of docs/ state are those of benchmarks/results and of `plan`, as they are now."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qvl_core.qwen3vl.plan import GIB, Workload, plan_memory
from qvl_core.qwen3vl.presets import config
from qvl_core.recipe.blocks import Group, Optim, Quantization, Speed

ROOT = Path(__file__).parents[1]
CASES = {  # row of the page: case of the benchmark
    "full": "small, full, picture",
    "LoRA": "small, lora, picture",
    "QLoRA": "small, qlora, picture",
    "three pictures in a sample": "small, full, pictures",
    "a clip in a sample": "small, full, video",
}
CONVERTED = {  # row of the page: arm of the benchmark, but for its number of steps
    "converted only": "converted_only",
    "LoRA, rank 4, all linear layers": "lora4",
    "LoRA, rank 8, all linear layers": "lora8",
    "LoRA, rank 16, all linear layers": "lora16",
    "LoRA, rank 16, attention alone": "lora16_attention",
    "LoRA, rank 16, and the mask's row": "lora16_mask_row",
    "LoRA, rank 64, all linear layers": "lora64",
    "in full": "full",
    "in full, prefix attention": "full_prefix",
    "in full, blocks of 4": "full_block",
}
TAKEN_AWAY = {
    "packing": "padded",
    "label rows": "full_logits",
    "the fused optimizer": "unfused",
    "patches as a product": "conv_patches",
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def row(name: str, first: str) -> list[str]:
    """The cells behind the first one in the last row of a page's tables that begins with it."""
    lines = [line for line in page(name).splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in lines[-1].strip("|").split("|")[1:]]


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))
    return found


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def after(words: str, text: str) -> list[float]:
    """The two numbers behind some words."""
    return numbers(text.partition(words)[2])[:2]


def test_speed() -> None:
    ratios: dict[str, dict[str, float]] = {case["case"]: {} for case in result("throughput")["results"]}
    for case in result("throughput")["results"]:
        for group in case["groups"]:
            ratios[case["case"]] |= group["ratios"]
    for name, case in CASES.items():
        stated = numbers(" ".join(row("sft/speed.md", name)))
        assert stated == pytest.approx([ratios[case][arm] for arm in ("trainer", "tuned", "trl")], abs=0.051), name
    full, lora = ratios["small, full, picture"], ratios["small, lora, picture"]
    text = " ".join(page("sft/speed.md").split()).partition("With one thing taken away")[2]
    for words, arm in TAKEN_AWAY.items():
        assert after(words, text) == pytest.approx([full[arm], lora[arm]], abs=0.0051), words
    assert after("in place of one large mask", text) == pytest.approx(
        [full["dense_mask"], full["two_gradients"]], abs=0.0051
    )
    for words, arm in (("Computing activations again takes", "recomputed"), ("compiled layers", "compiled")):
        assert after(words, text) == pytest.approx([full[arm], lora[arm]], abs=0.0051), words
    grouping = after("Length grouping alone makes the Trainer", text)[0]
    assert grouping == pytest.approx(full["trainer"] / full["grouped"], abs=0.0051)
    assert after("(LoRA:", text) == pytest.approx([lora["with_gradients"], 1 / lora["cached"]], abs=0.0051)


def test_learning() -> None:
    mean = result("learning")["mean"]
    for group in ("llm", "merger", "vision"):
        figures = (mean["base_mirrored"], mean[f"{group}_mirrored"], mean[f"{group}_shuffled"])
        assert row("sft/methods.md", f"`{group}`") == [f"{figure:.2f}" for figure in figures]
    for name, arm in (("new samples alone", "no_replay"), ("with replay", "replay")):
        assert row("sft/methods.md", name) == [f"{mean[f'{arm}_{data}']:.2f}" for data in ("parity", "digits")]


def test_conversion() -> None:
    found = result("conversion")
    text = page("mdlm/denoising.md").partition("## What converts")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert len(rows[2:]) >= len(CONVERTED)
    for label, steps, *stated in rows[2:]:
        pace = found["steps"] if label == "converted only" else int(steps)
        name = CONVERTED[label] + {-1: "_short", 0: "", 1: "_long"}[(pace > found["steps"]) - (pace < found["steps"])]
        arm = found["arms"][name]
        right = [f"{arm[figure]:.2f}" for figure in ("one_a_pass", "threshold", "forwards_per_token", "four_passes")]
        assert stated == [f"{arm['nelbo']:.1f}", *right], name


def test_caches_and_the_loss_step() -> None:
    found = result("mdlm")
    assert found["missed"] == []
    for one in found["writing"]:
        ratio = one["prompt_tokens"] // one["answer_tokens"]
        uncached, *cached = row("mdlm/verbs.md", f"{ratio} : 1")
        speed = one["tokens_per_cpu_second"]
        if one["pattern"] == "prefix":
            assert uncached == f"{speed['uncached']:.0f}"
        assert cached[one["pattern"] == "block"] == f"{speed['cached']:.0f} ({one['speedup']:.1f} times)"
        assert one["same_tokens"]
    text, loss = page("mdlm/verbs.md"), found["loss_step"]
    memory, time = loss["extra_mib"], loss["time_ratio"]
    assert f"{memory['masked']:.0f} MiB where logits of every token take {memory['full']:.0f}" in " ".join(text.split())
    assert f"{time:.1f} times as fast" in " ".join(text.split())


def test_operations_of_drawing() -> None:
    found = result("metaquery")
    assert found["missed"] == []
    sizes = row("metaquery/model.md", "Parameters at 24 layers")
    for one in found["training"]:
        model = one["model"].removeprefix("Qwen3-VL-")
        stated = row("metaquery/model.md", f"{model} | {one['prompt_tokens']}, {one['queries']}")[1:]
        alone, whole = one["language_model"], one["whole_step"]  # operations, of which the file has ratios rounded
        ratios = [f"{part['one_phase'] / part['two_phases']:.2f} times" for part in (alone, whole)]
        assert stated == [*ratios, f"{whole['two_phases'] / 790e9:.1f} ms"], one
        assert sizes[{"2B": 0, "8B": 2}[model]] == f"{one['connector_parameters'] / 1e9:.3f} B"
    text, drawn, equal = " ".join(page("metaquery/drawing.md").split()), found["drawing"], found["equal_prompts"]
    once, again = (drawn["cpu_seconds"][arm]["median"] for arm in ("remembered", "each_step"))
    assert (drawn["steps"], drawn["largest_difference"]) == (20, 0)
    assert f"Twenty guided steps behind a caption of {drawn['caption_tokens']} tokens take {once:.2f} CPU-s" in text
    assert f"read once and {again:.1f} with the prompt read again" in text
    assert (equal["pictures"], equal["prompts"]) == (64, 10)
    assert f"takes {equal['ratio']:.1f} times fewer operations" in text


@pytest.mark.slow
def test_the_corrected_table() -> None:
    plan = partial(plan_memory, config("Qwen3-VL-8B"), batch=Workload(2048), precision="bf16", recompute=True)
    groups = ("llm", "merger", "deepstack_mergers", "vision", "embed", "lm_head")
    every, lora = {group: Group(mode="full") for group in groups}, {"llm": Group(mode="lora", rank=16)}
    whole, small = plan(tune=every), plan(tune=every, optim=Optim(name="adamw_8bit"))
    shared = plan(tune=every, world=8, strategy="fsdp2")
    assert numbers(row("sft/methods.md", "full")[-1]) == [round(one.peak / GIB, 1) for one in (whole, small, shared)]
    assert row("sft/methods.md", "full")[1] == f"{whole.trainable / 1e9:.2f}B"
    for name, kind in (("LoRA", None), ("QLoRA", "nf4"), ("int8", "int8")):
        low = Quantization.model_validate({"kind": kind}) if kind else None
        rows, logits = (plan(tune=lora, quantization=low, speed=Speed(label_rows=on)) for on in (True, False))
        _, trained, all_logits, label_rows = row("sft/methods.md", name)
        assert trained == f"{rows.trainable / 1e6:.2f}M"
        assert all_logits in ("", f"{logits.peak / GIB:.1f}")
        assert numbers(label_rows) == [round(size / GIB, 1) for size in (rows.peak, rows.rows["frozen weights"])]
    assert f"at most {whole.flops / plan(tune=lora).flops:.1f} times as fast" in page("sft/methods.md")


def test_reading_of_embeddings() -> None:
    for first, name in (("32 KiB", "32 KiB"), ("1.6 MB (one source)", "one source")):
        for batch in (1, 4):
            found = result("embeddings")[name][f"batches of {batch}"]
            cells = row("edit/stored.md", f"{first}, in batches of {batch}")
            assert [int(rate.replace(",", "")) for rate in cells[:2]] == [
                round(found[arm]) for arm in ("files", "shards")
            ]
            ratios = [found[pair] for pair in ("shards / files", "first / files", "shards / files once")]
            assert numbers(" ".join(cells[2:])) == pytest.approx(ratios, abs=0.051)
    assert result("embeddings")["32 KiB"]["batches of 1"]["shards / files"] >= 5
    assert result("embeddings")["one source"]["batches of 1"]["shards / files"] >= 4  # copying decides: see the page
    whole = result("embeddings")["one source"]
    assert whole["shards_mb"] / whole["files_mb"] == pytest.approx(0.4, abs=0.05)


def test_memory_of_editing_is_by_the_plan() -> None:
    from qvl_core.recipe.load import load
    from qvl_edit.plan import predict
    from qvl_edit.recipe import RECIPE

    page = (ROOT / "docs" / "edit" / "memory.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) GiB \| (?:([\d.]+) GiB )?\|$", page, re.M)
    assert len(rows) == 7
    for words, needed, waiting in rows:
        changes = [change for code in re.findall(r"`([^`]+)`", words) for change in code.split() if "=" in change]
        name = "lora_21" if "lora_21" in words else "lora_2509"
        planned = predict(load(RECIPE, name, ["stored.latents=x", *changes], "qvl_edit"))
        assert f"{planned.needed / GIB:.1f}" == needed, words
        assert f"{planned.waiting / GIB:.1f}" == (waiting or "0.0"), words
