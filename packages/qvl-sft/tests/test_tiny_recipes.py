"""The tiny twins of the recipes really train: each once, in less steps, against a lower bar than its head states."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import qvl_sft

from qvl_core.qwen3vl.tiny import tiny
from qvl_core.run import RunFolder
from qvl_data import example
from qvl_data.convert import write_samples


def train(name: str, out: Path, *overrides: str) -> dict[str, Any]:
    """The result of a recipe, given as its name and what changes."""
    done = qvl_sft("train", name, *overrides, "--out", str(out))
    assert done.code == 0, done.err
    return dict(RunFolder(out).read_result() or {})


def example_data(name: str, folder: Path) -> Path:
    for split in ("train", "test"):
        write_samples(list(example.samples(name, split)), folder / name / f"{split}.parquet")
    return folder / name


def parity(data: Path, base: Path) -> list[str]:
    """Settings of the twins that learn odd or even beside digits, on a third of the test pictures."""
    return [
        f"model.name={base / 'final'}",
        f"data.train.0.source={data / 'parity'}",
        f"data.train.1.source={data / 'digits'}",
        f"data.test={{source: {data / 'parity'}, take: 120}}",
        "tune.merger={mode: full, lr: 2e-3}",  # of the shortly trained base
        "train.steps=100",
        "batch.size=16",
        "optim.lr=6e-3",
    ]


def test_qlora(data: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    found = train("tiny_qlora", tmp_path / "run", *parity(data, trained))
    assert found["test_exact_match"] >= 0.70  # chance 0.5


def test_lora_vision(data: Path, trained: Path, tmp_path: Path) -> None:
    found = train("tiny_lora_vision", tmp_path / "run", *parity(data, trained))
    assert found["test_exact_match"] >= 0.70


def test_merger_stage(data: Path, trained: Path, tmp_path: Path) -> None:
    given = [f"model.name={trained / 'final'}", f"data.train.0.source={data / 'digits'}"]
    test = f"data.test={{source: {data / 'digits'}, take: 120}}"
    found = train("tiny_merger_stage", tmp_path / "run", *given, test, "train.steps=30")
    assert found["test_exact_match"] >= 0.80  # chance 0.1


def test_video(trained: Path, tmp_path: Path) -> None:
    clips = example_data("video", tmp_path)
    given = [f"model.name={trained / 'final'}", f"data={{train: {clips}, test: {clips}}}"]
    train("tiny_video", tmp_path / "run", *given, "train.steps=160", "optim.lr=1.5e-3")
    told = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text("utf-8").splitlines()]
    ways = [tuple(row[key].partition(", ")[2] for key in ("answer", "reference")) for row in told]
    assert sum(answer == reference for answer, reference in ways) >= 0.45 * len(ways)  # always the same one: 0.32


def test_grounding(trained: Path, tmp_path: Path) -> None:
    boxes = example_data("grounding", tmp_path)
    given = [f"model.name={trained / 'final'}", f"data.train.0.source={boxes}"]
    test = f"data.test={{source: {boxes}, take: 24}}"
    found = train("tiny_grounding", tmp_path / "run", *given, test, "train.steps=40", "batch.size=8")
    assert found["test_loss"] <= 4.0  # 9.8 before
    assert {"test_box_recall_50", "test_iou"} <= found.keys()


def test_thinking(tmp_path: Path) -> None:
    reasoned = example_data("thinking", tmp_path)
    base = tiny(tmp_path / "thinker", thinking=True)
    given = [
        f"model.name={base}",
        f"data={{train: {reasoned}, test: {{source: {reasoned}, take: 120}}, train_on: last}}",
    ]
    found = train("tiny_thinking", tmp_path / "run", *given, "train.steps=100", "optim.lr=3e-3")
    assert found["test_exact_match"] >= 0.70  # chance 0.5
