"""QLoRA, PiSSA, LoftQ and their like through the real loop: trained, killed, continued, merged, refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Done, qvl_sft
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.lora import load_adapter
from qvl_core.qwen3vl.quantize import is_low_bit
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Model
from qvl_core.run import RunFolder
from qvl_data.chat import encode
from qvl_data.example.digits import digits_dataset
from qvl_sft.trained import load_trained

NF4 = ["model.quantization=nf4"]
PISSA = ["tune.llm.init=pissa"]
LOFTQ = ["model.quantization=nf4", "tune.llm.init=loftq"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("base") / "tiny")


def run(base: Path, data: Path, out: Path, *changes: str) -> Done:
    lora = "tune={llm: {mode: lora, rank: 8, alpha: 16}, merger: {mode: full}}"
    small = ["train.steps=6", "batch.size=8", "checkpoint={every: 3, keep: 9}", "optim.lr=1e-2", "log.every=1"]
    digits = f"data={{train: {data / 'digits'}}}"
    return qvl_sft("train", "tiny", f"model.name={base}", digits, lora, *small, *changes, "--out", str(out))


def logits(model: Any, processor: Any) -> Tensor:
    sample = encode(next(iter(digits_dataset("digit", "test"))), processor)
    batch = collate([sample], packing=False, merge=2, pad_id=0)
    with torch.no_grad():
        return model(**batch.inputs()).logits


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(NF4, id="nf4"),
        pytest.param(["model.quantization=int8"], id="int8", marks=pytest.mark.slow),
        pytest.param(LOFTQ, id="loftq", marks=pytest.mark.slow),
    ],
)
def test_trained_in_fewer_bits_and_merged_into_the_full_base(
    method: list[str], base: Path, data: Path, tmp_path: Path
) -> None:
    done = run(base, data, tmp_path / "run", *method)
    assert done.code == 0, done.err
    losses = [record["loss"] for record in RunFolder(tmp_path / "run").read_metrics() if "loss" in record]
    assert losses[-1] < losses[0]

    final = tmp_path / "run/final"
    whole, processor = load_model(Model(name=str(base)), precision="fp32", device="cpu")
    unmerged = logits(load_adapter(whole, final), processor)
    stock, _ = load_model(Model(name=str(base)), precision="fp32", device="cpu")
    assert torch.equal(logits(PeftModel.from_pretrained(stock, final), processor), unmerged)

    done = qvl_sft("merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged"), "--dtype", "fp32")
    assert done.code == 0, done.err
    held = json.loads((final / "qvl.json").read_text(encoding="utf-8"))["quantized"]
    assert f"in {held['kind']}, which differ from the full ones by {held['error']:.1%}" in " ".join(done.out.split())
    merged, _ = load_trained(str(tmp_path / "merged"))
    assert not any(is_low_bit(parameter) for parameter in merged.parameters())
    assert (logits(merged, processor) - unmerged).abs().max() < 1e-4


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(NF4, id="nf4", marks=pytest.mark.slow),
        pytest.param(PISSA, id="pissa", marks=pytest.mark.slow),
        pytest.param([*PISSA, *NF4], id="nf4 pissa"),
        pytest.param(LOFTQ, id="loftq", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_cut_short_ends_with_the_same_bits(
    method: list[str], base: Path, data: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(base, data, whole, *method).code == 0
    shutil.copytree(whole, cut)
    for path in (cut / "final", cut / "checkpoints/step-000006"):
        shutil.rmtree(path)
    (cut / "result.json").unlink()
    done = run(base, data, cut, *method)
    assert done.code == 0, done.err
    assert any(record.get("event") == "resume" for record in RunFolder(cut).read_metrics())
    ours, theirs = (load_file(path / "final/adapter_model.safetensors") for path in (cut, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_knows_its_base(base: Path, data: Path, tmp_path: Path) -> None:
    assert run(base, data, tmp_path / "run", "train.steps=1").code == 0
    other = tiny(tmp_path / "other", seed=1)
    done = qvl_sft("merge", str(tmp_path / "run"), "--base", str(other), "--out", str(tmp_path / "merged"))
    assert done.code == 2
    assert "was trained on other weights than those in" in done.err
    assert not (tmp_path / "merged").exists()
    copy = shutil.copytree(base, tmp_path / "copy")
    done = qvl_sft("merge", str(tmp_path / "run"), "--base", str(copy), "--out", str(tmp_path / "merged"))
    assert done.code == 0, done.err


def test_weights_of_another_folder_are_the_base_of_the_adapter(base: Path, data: Path, tmp_path: Path) -> None:
    """init_from with a whole model: what the adapter stands on are those weights."""
    other = tiny(tmp_path / "other", seed=1)
    done = run(base, data, tmp_path / "run", f"model.init_from={other}", "train.steps=1")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run/final/adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(other.resolve())
    load_trained(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([*NF4, "tune.llm={mode: full}"], "tune.llm: weights in fewer bits cannot be trained in full"),
        ([*NF4, "tune.llm.dora=true"], "tune.llm.dora: needs full-precision weights"),
        (["tune.llm.init=loftq"], "tune.llm.init: loftq makes up for what nf4 loses"),
        ([*NF4, "parallel.strategy=fsdp2"], "`parallel.strategy: fsdp2` exclude each other"),
        (["model.quantization=nf5"], "model.quantization"),
        (["tune.llm.layers=9"], "tune.llm.layers: 9, but there are 3"),
    ],
)
def test_what_cannot_be_meant(changes: list[str], words: str, base: Path, data: Path, tmp_path: Path) -> None:
    done = run(base, data, tmp_path / "run", *changes)
    assert done.code == 2, done.err
    assert words in done.err
    assert done.err.strip().count("\n") == 0
