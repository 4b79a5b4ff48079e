"""The trainer: the document's own example, and a step of it against the package's loss."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversations import row, rows
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sharing import run
from transformers import Qwen3VLForConditionalGeneration, TrainingArguments

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.training.samples import Place
from qvl_data.chat import encode
from qvl_data.row import read_row
from qvl_mdlm.batch import Corruption, collate
from qvl_mdlm.collator import create_qwen3_vl_collator
from qvl_mdlm.layout import shape_of
from qvl_mdlm.model import Qwen3VLForMaskedLM
from qvl_mdlm.noise import Noise
from qvl_mdlm.recipe import Diffusion
from qvl_mdlm.settings import SETTINGS
from qvl_mdlm.trainer import Qwen3VLTrainer

LR, SEED = 0.1, 5
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
# The document's "Custom Training", with its imports replaced, a folder for the hub's name, and at (1) and (2) what a
# test needs: bf16 asks for `use_cpu` where there is no GPU.
EXAMPLE = """
from qvl_mdlm import Qwen3VLForMaskedLM, Qwen3VLTrainer, create_qwen3_vl_collator
from transformers import AutoProcessor, TrainingArguments

# Load model with frozen vision components
model = Qwen3VLForMaskedLM.from_pretrained(
    FOLDER,
    freeze_vision=True,
    freeze_merger=True,
)

# Apply LoRA
from peft import LoraConfig, get_peft_model
lora_config = LoraConfig(
    r=16,
    lora_alpha=32,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    lora_dropout=0.05,
    bias="none",
    task_type="CAUSAL_LM",
)
model = get_peft_model(model, lora_config)
before = look_at(model)  # (1)

# Load processor
processor = AutoProcessor.from_pretrained(FOLDER)

# Create data collator
collator = create_qwen3_vl_collator(
    processor=processor,
    mask_prompt_loss=True,
    max_seq_length=2048,
)

# Define training arguments
training_args = TrainingArguments(
    output_dir="./outputs",
    num_train_epochs=3,
    per_device_train_batch_size=4,
    learning_rate=2e-4,
    bf16=True,
    **FOR_THE_TEST,  # (2)
)

# Create trainer
trainer = Qwen3VLTrainer(
    model=model,
    args=training_args,
    train_dataset=train_dataset,
    data_collator=collator,
)

# Train
trainer.train()
"""


def look_at(model: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.detach().float().numpy().tobytes()).hexdigest()
        for name, value in model.named_parameters()
    }


def test_the_example_of_the_document_runs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "FOLDER": str(base),
        "FOR_THE_TEST": QUIET | {"logging_steps": 1},
        "train_dataset": Dataset.from_list(rows(16)),
        "look_at": look_at,
    }
    exec(EXAMPLE.replace("2e-4", "2e-3"), names)
    model, trainer = names["model"], names["trainer"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    after = look_at(model)
    changed = {name for name in after if after[name] != names["before"][name]}
    assert changed == {name for name in after if "lora_" in name}
    assert not any("visual" in name for name in changed)
    frozen = [p for name, p in model.named_parameters() if "visual" in name]
    assert frozen
    assert not any(p.requires_grad for p in frozen)
    checkpoint = tmp_path / "outputs/checkpoint-12"
    assert json.loads((checkpoint / SETTINGS).read_text("utf-8"))["pad_to"] == 32
    assert (checkpoint / "tokenizer.json").is_file()
    assert f'"base_model_name_or_path": "{base}"' in (checkpoint / "adapter_config.json").read_text("utf-8")


def arguments(out: Path, **options: Any) -> TrainingArguments:
    """One plain SGD step, unless `options` say otherwise."""
    common = {
        "max_steps": 1,
        "learning_rate": LR,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    return TrainingArguments(
        str(out), **(QUIET | common | {"seed": SEED, "train_sampling_strategy": "sequential"} | options)
    )


def trainer_of(model: Any, processor: Any, out: Path, *, diffusion: Diffusion | None = None, **options: Any) -> Any:
    collator = create_qwen3_vl_collator(processor, pad_to=8)
    given = {"train_dataset": rows(), "eval_dataset": rows(), "data_collator": collator}
    return Qwen3VLTrainer(model=model, args=arguments(out, **options), diffusion=diffusion, **given)


CASES: dict[str, tuple[dict[str, Any], Diffusion]] = {
    "full": ({}, Diffusion()),
    "prefix": ({"attention": "prefix"}, Diffusion(norm="sequence", weight="uniform")),
    "block": ({"attention": "block", "block_size": 4}, Diffusion(norm="batch", times="antithetic")),
    "bernoulli": ({}, Diffusion(schedule="cosine", masks="bernoulli", times="iid")),
    "pairs": ({}, Diffusion(complementary=True)),
}


def own_step(model: Any, processor: Any, diffusion: Diffusion) -> dict[str, torch.Tensor]:
    """The weights after an SGD step on the package's own loss, each sample alone in its forward."""
    halves = (False, True) if diffusion.complementary else (False,)
    shape = shape_of(model.config, processor.tokenizer, pad_to=8)
    corrupt = Corruption(shape, Noise.of(diffusion), model.config.mask_token_id, diffusion.norm)
    samples = [encode(read_row(each, ""), processor) for each in rows()]
    noised = [corrupt(one, SEED, Place(0, slot, 4), half) for slot, one in enumerate(samples) for half in halves]
    patterned = model.config.pattern != "full"
    for one in noised:
        batch = collate([one], packing=False, patterned=patterned, merge=2, pad_id=shape.pad_id)
        (next_token_loss(model, batch) / sum(each.share for each in noised)).backward()
    return {name: (p - LR * p.grad).detach() for name, p in model.named_parameters() if p.grad is not None}


def test_experts_take_the_same_step(experts: Path, processor: Any, tmp_path: Path) -> None:
    model, other = (Qwen3VLForMaskedLM.from_pretrained(experts) for _ in range(2))  # fp32: experts have no fp64
    expected = own_step(other, processor, Diffusion())
    two_by_two = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer_of(model, processor, tmp_path, diffusion=Diffusion(), **two_by_two).train()
    assert any(".mlp.experts." in name for name in expected)
    for name, parameter in model.named_parameters():
        if name in expected:
            assert (parameter - expected[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_the_packages_own_loss(
    masked: Callable[..., Any], processor: Any, tmp_path: Path, case: str
) -> None:
    options, diffusion = CASES[case]
    model = masked(**options)
    expected = own_step(masked(**options), processor, diffusion)
    two_by_two = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer_of(model, processor, tmp_path, diffusion=diffusion, **two_by_two).train()
    assert len(expected) > 50
    for name, parameter in model.named_parameters():
        if name in expected:
            assert (parameter - expected[name]).abs().max() < 1e-5, name


def test_accumulation_changes_nothing(masked: Callable[..., Any], processor: Any, tmp_path: Path) -> None:
    models = [masked(), masked()]
    for model, micros in zip(models, (1, 4), strict=True):
        options = {"per_device_train_batch_size": 4 // micros, "gradient_accumulation_steps": micros}
        trainer = trainer_of(model, processor, tmp_path / str(micros), logging_steps=1, **options)
        trainer.train()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (one - other).abs().max() < 1e-10


def adapted(base: Path) -> Any:
    torch.manual_seed(0)
    model = Qwen3VLForMaskedLM.from_pretrained(base)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "o_proj"], lora_dropout=0.1))


def noted(trainer: Any) -> list[bytes]:
    """What each micro-batch that a trainer computes looks like with its masks."""
    seen: list[bytes] = []
    compute = trainer.compute_loss

    def look(model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        batch = inputs["noised"]
        seen.append(batch.input_ids.numpy().tobytes() + batch.targets.numpy().tobytes())
        return compute(model, inputs, *rest, **options)

    trainer.compute_loss = look
    return seen


def test_a_resumed_run_has_the_masks_and_weights_of_an_uninterrupted_one(
    base: Path, processor: Any, tmp_path: Path
) -> None:
    options = {"max_steps": 6, "per_device_train_batch_size": 2, "save_steps": 3, "optim": "adamw_torch"}
    options["train_sampling_strategy"] = "random"
    whole = trainer_of(adapted(base), processor, tmp_path, **options)
    masks = noted(whole)
    whole.train()
    assert len(set(masks)) == 6
    (tmp_path / "checkpoint-6").rename(tmp_path / "finished")
    again = trainer_of(adapted(base), processor, tmp_path, **options)
    resumed = noted(again)
    again.train(resume_from_checkpoint=True)
    assert resumed == masks[3:]
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_evaluation_has_its_own_masks_whatever_the_batches(
    masked: Callable[..., Any], processor: Any, tmp_path: Path
) -> None:
    model = masked()
    losses = []
    for size in (1, 3, 4):
        trainer = trainer_of(model, processor, tmp_path, per_device_eval_batch_size=size)
        losses += [trainer.evaluate()["eval_loss"], trainer.evaluate()["eval_loss"]]
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-9)
    batch = trainer.data_collator(rows())
    one = trainer.compute_loss(model, batch)
    assert one.item() == trainer.compute_loss(model, batch).item() != losses[0]


def test_recomputed_layers_under_peft_learn(base: Path, processor: Any, tmp_path: Path) -> None:
    models = []
    for recompute in (False, True):
        model = adapted(base)
        trainer_of(model, processor, tmp_path, gradient_checkpointing=recompute, max_steps=2).train()
        models.append({name: p for name, p in model.named_parameters() if p.requires_grad})
    changed = 0
    for name, one in models[0].items():
        assert torch.allclose(one, models[1][name], atol=1e-6), name
        changed += bool("lora_B" in name and one.any())
    assert changed


def test_pictures_in_some_rows_and_words_alone_in_others(base: Path, processor: Any, tmp_path: Path) -> None:
    trainer = trainer_of(adapted(base), processor, tmp_path, per_device_train_batch_size=1, max_steps=4)
    trainer.train_dataset = [*rows(2), row("2 and 1?", "3"), row("1 and 1?", "2", "And 1?", "3")]
    trainer.train()
    assert trainer.state.global_step == 4


def test_what_cannot_be_meant_is_said(base: Path, masked: Callable[..., Any], processor: Any, tmp_path: Path) -> None:
    collator = create_qwen3_vl_collator(processor)

    def refused(said: str, model: Any = None, **options: Any) -> None:
        given = {"args": arguments(tmp_path), "data_collator": collator} | options
        with pytest.raises(BadInput, match=said):
            Qwen3VLTrainer(model=masked() if model is None else model, **given)

    refused("attends causally; load it with", Qwen3VLForConditionalGeneration.from_pretrained(base))
    refused("no processor", data_collator=None)
    refused("label_smoothing_factor", args=arguments(tmp_path, label_smoothing_factor=0.1))
    refused("compute_metrics", compute_metrics=lambda _: {})
    refused("compute_loss_func", compute_loss_func=lambda *_: None)
    refused("attention prefix: the checkpoint was trained with full", diffusion=Diffusion(attention="prefix"))
    refused("pad_to 8: the collator says 32", diffusion=Diffusion(pad_to=8))
    refused("prompt_loss True: the collator says False", diffusion=Diffusion(prompt_loss=True))
    prompts = create_qwen3_vl_collator(processor, mask_prompt_loss=False)
    refused("attends by prefix", masked(attention="prefix"), data_collator=prompts)


def test_a_batch_of_prompts_alone_is_said(masked: Callable[..., Any], processor: Any, tmp_path: Path) -> None:
    collator = create_qwen3_vl_collator(processor)

    def prompts(rows: Any) -> dict[str, torch.Tensor]:
        batch = collator(rows)
        return batch | {"labels": torch.full_like(batch["labels"], -100)}

    trainer = Qwen3VLTrainer(
        model=masked(),
        args=arguments(tmp_path),
        train_dataset=rows(),
        data_collator=prompts,
        processing_class=processor,
    )
    with pytest.raises(BadInput, match=r"nothing in this batch may be masked.*give rows with answers"):
        trainer.train()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_and_measure_as_one(base: Path, tmp_path: Path) -> None:
    run(str(base), tmp_path / "one", 4)
    script = Path(__file__).parent / "sharing.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(
        [*launch, str(base), str(tmp_path / "two"), "2"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    one, two = (load_file(tmp_path / name / "trained.safetensors") for name in ("one", "two"))
    assert all((one[name] - two[name]).abs().max() < 1e-10 for name in one)
    losses = [json.loads((tmp_path / name / "loss.json").read_text("utf-8")) for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
