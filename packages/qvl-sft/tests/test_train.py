"""The main job on real digits: it learns, repeats itself to the bit, and what it leaves behind can be used.

After a wanted change of the numbers, write the golden curve anew and say why in the commit:

    python packages/qvl-sft/tests/test_train.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import files, qvl_sft, write_digits
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from qvl_core.qwen3vl.batch import collate
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_data.chat import encode
from qvl_data.example.digits import digits_dataset
from qvl_sft import train
from qvl_sft.recipe import RECIPE
from qvl_sft.trained import load_trained

GOLDEN = Path(__file__).parent / "golden" / "tiny.json"
TOLERANCE = 1e-3  # relative: other processors add in another order, and twelve steps multiply the difference
BAR = 0.60  # chance is 0.10, the run reaches 0.83


# Learning


def test_the_tiny_recipe_learns_to_read(trained: Path) -> None:
    result = RunFolder(trained).read_result()
    assert result is not None
    assert result["test_exact_match"] >= BAR
    assert result["test_loss"] < 1.0
    losses = [record["loss"] for record in RunFolder(trained).read_metrics() if "loss" in record]
    assert losses[-1] < losses[0] / 3


def golden_run(data: Path, out: Path, *changes: str) -> Path:
    """Twelve steps of the recipe `tiny`, all logged."""
    digits = data / "digits"
    short = ["train.steps=12", "schedule.warmup=4", "batch.size=8", "log.every=1", "evaluate.every=null"]
    overrides = [f"data={{train: {{source: {digits}, augment: {{shift: 2}}}}}}", *short, *changes]
    train(load(RECIPE, "tiny", overrides, "qvl_sft"), out)
    return out


def curve(run: Path) -> list[float]:
    return [record["loss"] for record in RunFolder(run).read_metrics() if "loss" in record]


@pytest.fixture(scope="module")
def golden(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_run(data, tmp_path_factory.mktemp("golden") / "run")


def test_the_golden_loss_curve(golden: Path) -> None:
    assert curve(golden) == pytest.approx(json.loads(GOLDEN.read_text(encoding="utf-8")), rel=TOLERANCE)


def test_a_seed_repeats_the_run_to_the_bit_and_another_does_not(golden: Path, data: Path, tmp_path: Path) -> None:
    weights = (golden / "final/model.safetensors").read_bytes()
    again = golden_run(data, tmp_path / "again", f"model.name={golden / 'base-0'}")
    assert (again / "final/model.safetensors").read_bytes() == weights
    assert curve(again) == curve(golden)
    other = golden_run(data, tmp_path / "other", f"model.name={golden / 'base-0'}", "train.seed=1")
    assert curve(other) != curve(golden)


@pytest.mark.slow
def test_workers_change_nothing(golden: Path, data: Path, tmp_path: Path) -> None:
    run = golden_run(data, tmp_path / "run", f"model.name={golden / 'base-0'}", "data.workers=2")
    assert (run / "final/model.safetensors").read_bytes() == (golden / "final/model.safetensors").read_bytes()
    assert curve(run) == curve(golden)


# The run folder


def test_the_run_folder_is_complete(trained: Path) -> None:
    held = {path.name for path in trained.iterdir()}
    expected = {
        "base-0",
        "checkpoints",
        "environment.json",
        "final",
        "metrics.jsonl",
        "predictions.jsonl",
        "recipe.yaml",
    }
    assert held == expected | {"report.html", "result.json", "answers"}  # and no leftovers
    assert [path.name for path in sorted((trained / "checkpoints").iterdir())] == ["step-000040", "step-000080"]
    environment = RunFolder(trained).read_environment()
    assert {row["group"]: row["mode"] for row in environment["tune"]} == dict.fromkeys(
        ("llm", "merger", "deepstack_mergers", "vision", "embed", "lm_head"), "full"
    )
    assert environment["base"] == str(trained.resolve() / "base-0")
    assert load(RECIPE, str(trained / "recipe.yaml")).train.steps == 80


def test_the_result(trained: Path) -> None:
    result = RunFolder(trained).read_result()
    assert result is not None
    assert (result["schema"], result["package"], result["seed"]) == ("qvl.result/1", "qvl-sft", 0)
    assert (result["complete"], result["steps"], result["final_step"]) == (True, 80, 80)
    assert (result["bad_samples"], result["dropped_samples"], result["nonfinite_steps"]) == (0, 0, 0)
    assert result["seconds"] > 0
    assert result["wall_seconds"] > 0
    assert not [value for value in result.values() if isinstance(value, dict | list)]


def test_the_predictions_are_the_test_set_and_make_the_figure(trained: Path) -> None:
    lines = (trained / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    predictions = [entry for entry in map(json.loads, lines) if entry["list"] == "test"]
    assert [entry["id"] for entry in predictions] == [sample.id for sample in digits_dataset("digit", "test")]
    for entry in predictions:
        assert entry["question"] == "Which digit is this?"
        assert entry["correct"] == (entry["answer"].strip() == entry["reference"])
    result = RunFolder(trained).read_result()
    assert result is not None
    assert result["test_exact_match"] == sum(entry["correct"] for entry in predictions) / 360
    shown = [entry["picture"] for entry in predictions if entry["picture"]]
    assert 24 <= len(shown) <= 48  # the first, and the worst
    assert all((trained / name).read_bytes().startswith(b"\x89PNG") for name in shown)


def test_the_report_asks_for_nothing_from_outside(trained: Path) -> None:
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "Which digit is this?" in page
    assert "Answers on test" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    (trained / "report.html").unlink()
    assert qvl_sft("report", str(trained)).code == 0
    assert (trained / "report.html").read_text(encoding="utf-8") == page


def test_final_loads_as_any_model_does(trained: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(trained / "final")
    AutoProcessor.from_pretrained(trained / "final")
    own = load_file(trained / "checkpoints/step-000080/weights-00000.safetensors")
    values = dict(model.named_parameters())
    assert own.keys() == values.keys()
    assert all(torch.equal(values[name], tensor) for name, tensor in own.items())


def test_a_finished_run_is_left_alone_and_fresh_moves_it_aside(golden: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(golden, run := tmp_path / "run")
    before = {name: (run / name).stat().st_mtime_ns for name in files(run)}
    result = golden_run(data, run)
    assert {name: (run / name).stat().st_mtime_ns for name in files(result)} == before
    digits = f"data={{train: {data / 'digits'}}}"
    fresh = qvl_sft("train", "tiny", digits, "train.steps=1", "batch.size=2", "--out", str(run), "--fresh")
    assert fresh.code == 0
    assert files(tmp_path / "run.old-1") == sorted(before)
    assert [record["step"] for record in RunFolder(run).read_metrics() if "loss" in record] == [1]


# LoRA


def logits(model: Any, processor: Any) -> torch.Tensor:
    """What a model says to held-out pictures, token by token."""
    encoded = [encode(sample, processor) for sample in digits_dataset("parity", "test")[:4]]
    batch = collate(encoded, packing=False, merge=2, pad_id=processor.tokenizer.pad_token_id)
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        return model(**batch.inputs()).logits


def test_lora_learns_a_new_question(adapted: Path) -> None:
    result = RunFolder(adapted).read_result()
    assert result is not None
    assert result["test_exact_match"] >= 0.70  # chance is 0.50, the run reaches 0.93


def test_plain_peft_loads_the_adapter(adapted: Path, trained: Path) -> None:
    ours, processor = load_trained(str(adapted))
    base = AutoModelForImageTextToText.from_pretrained(trained / "final")
    theirs = PeftModel.from_pretrained(base, adapted / "final").eval()
    assert torch.equal(logits(theirs.base_model.model, processor), logits(ours, processor))


@pytest.fixture(scope="module")
def merged(adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "model"
    done = qvl_sft("merge", str(adapted), "--out", str(out), "--dtype", "fp32")
    assert done.code == 0, done.err
    return out


def test_merged_is_equal_and_carries_the_processor(merged: Path, adapted: Path) -> None:
    processor = AutoProcessor.from_pretrained(merged)
    model = AutoModelForImageTextToText.from_pretrained(merged).eval()
    assert not hasattr(model, "peft_config")
    ours, _ = load_trained(str(adapted))
    found, expected = logits(model, processor), logits(ours, processor)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()  # fp32 rounds a logit of 20 to 2e-6
    assert {"tokenizer.json", "chat_template.jinja", "processor_config.json", "config.json"} <= set(files(merged))
    assert [path.name for path in merged.parent.iterdir()] == ["model"]
    stored = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    assert "attn" not in json.dumps(stored)


def test_the_adapter_changes_the_base(adapted: Path, trained: Path) -> None:
    """Equalities above would also hold for an adapter that does nothing."""
    base, processor = load_trained(str(trained))
    tuned, _ = load_trained(str(adapted))
    assert (logits(base, processor) - logits(tuned, processor)).abs().max() > 0.1


def test_chat_and_evaluate_take_a_run_an_adapter_and_a_model(
    adapted: Path, merged: Path, data: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "digit.png"
    picture.write_bytes(digits_dataset("digit", "test")[0].media[0].bytes or b"")
    answers, figures = [], []
    for number, model in enumerate((adapted, adapted / "final", merged)):
        said = qvl_sft("chat", str(model), "Is this digit odd or even?", "--image", str(picture))
        assert said.code == 0, said.err
        answers.append(said.out.strip())
        out = tmp_path / f"evaluation-{number}"
        done = qvl_sft("evaluate", str(model), str(data / "parity"), "--out", str(out), "--samples", "24")
        assert done.code == 0, done.err
        result = RunFolder(out).read_result()
        assert result is not None
        figures.append((result["test_exact_match"], round(result["test_loss"], 4)))
        assert len((out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 24
        assert {"report.html", "result.json", "predictions.jsonl", "answers"} == {path.name for path in out.iterdir()}
    assert answers[0] in ("odd", "even")
    assert len(set(answers)) == 1
    assert len(set(figures)) == 1


def test_a_moved_run_finds_the_base_inside_it(data: Path, tmp_path: Path) -> None:
    """A run on `tiny` builds its base in the run folder, and its adapter names it there."""
    out, lora = tmp_path / "run", "tune={llm: {mode: lora, rank: 4, alpha: 8}}"
    digits = f"data={{train: {data / 'digits'}}}"
    done = qvl_sft("train", "tiny", lora, digits, "train.steps=1", "batch.size=2", "--out", str(out))
    assert done.code == 0, done.err
    model, processor = load_trained(str(out))
    expected = logits(model, processor)
    shutil.move(out, moved := tmp_path / "elsewhere" / "run")
    model, processor = load_trained(str(moved))
    assert torch.equal(logits(model, processor), expected)
    config = json.loads((moved / "final/adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(out.resolve() / "base-0")


# Weights of another run


def test_an_adapter_is_continued_from_its_weights(adapted: Path, trained: Path, data: Path, tmp_path: Path) -> None:
    """init_from: the first step starts at the adapter, not at the base."""
    done = qvl_sft(
        "train", "tiny_lora", f"model.name={trained / 'final'}", f"model.init_from={adapted / 'final'}",
        f"data={{train: {data / 'parity'}}}", "tune.merger={mode: full, lr: 1e-12}", "tune.llm.lr=1e-12",
        "train.steps=1", "batch.size=2", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.code == 0, done.err
    ours, theirs = (load_file(path / "final/adapter_model.safetensors") for path in (tmp_path / "run", adapted))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in ours)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        losses = curve(golden_run(write_digits(Path(folder) / "data"), Path(folder) / "run"))
    GOLDEN.write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")
    print(*losses, GOLDEN, sep="\n")
