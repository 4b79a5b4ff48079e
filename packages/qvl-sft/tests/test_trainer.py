"""QVL's collator and loss inside the trainers of transformers and TRL: the same gradients as QVL's own loop."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.qwen3vl.tiny import tiny
from qvl_data.chat import encode
from qvl_data.errors import BadSample
from qvl_data.example.digits import digits_dataset
from qvl_data.sample import Sample
from qvl_sft.trainer import ChatCollator, LabelLoss, label_loss

LR = 0.1
ANSWERS = ("It is a seven.", "9", "No idea, this could be any digit at all", "3")  # so that label counts differ


class LabelSFTTrainer(LabelLoss, SFTTrainer):
    """TRL's trainer with QVL's loss."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model") / "tiny", ANSWERS)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def rows() -> list[dict[str, Any]]:
    """Chats as users have them: messages, and pictures beside them."""
    return [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ],
            "images": [Image.open(io.BytesIO(sample.media[0].bytes or b""))],
        }
        for sample, answer in zip(digits_dataset("digit", "test"), ANSWERS, strict=False)
    ]


def trained(kind: type[Trainer], model: Any, processor: Any, out: Path, **options: Any) -> Trainer:
    """One SGD step of a trainer over all four chats, two in each forward."""
    common = {
        "output_dir": str(out),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    config: Any = TrainingArguments
    if issubclass(kind, SFTTrainer):
        config = SFTConfig
        common |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False}
    trainer = kind(
        model=model,
        args=config(**common),
        train_dataset=Dataset.from_list(rows()),
        data_collator=ChatCollator(processor),
        processing_class=processor,
        **options,
    )
    trainer.train()
    return trainer


def own_step(folder: Path, samples: Sequence[Any], processor: Any) -> dict[str, torch.Tensor]:
    """The weights after one step of SGD on the mean over all labels, each sample alone in its forward."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    encoded = [encode(sample, processor) for sample in samples]
    for sample in encoded:
        batch = collate([sample], packing=True, merge=2, pad_id=processor.tokenizer.pad_token_id)
        (next_token_loss(model, batch) / sum(one.count for one in encoded)).backward()
    return {name: (p - LR * p.grad).detach() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "options"), [(Trainer, {"compute_loss_func": label_loss}), (LabelSFTTrainer, {})])
def test_a_step_equals_that_of_the_mean_over_all_labels(
    kind: type[Trainer], options: dict[str, Any], folder: Path, processor: Any, tmp_path: Path
) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(kind, model, processor, tmp_path, **options)
    collator = ChatCollator(processor)
    expected = own_step(folder, [collator.sample(row, 0) for row in rows()], processor)
    assert len(expected) > 50
    for name, parameter in model.named_parameters():
        if name in expected:
            moved = (expected[name] - before[name]).abs().max()
            assert (parameter - expected[name]).abs().max() <= 1e-4 * moved + 1e-7, name


def test_an_adapter_is_a_plain_peft_folder(folder: Path, processor: Any, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|down_proj)", init_lora_weights=False)
    model = get_peft_model(Qwen3VLForConditionalGeneration.from_pretrained(folder), config)
    trainer = trained(Trainer, model, processor, tmp_path, compute_loss_func=label_loss)
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(
        Qwen3VLForConditionalGeneration.from_pretrained(folder), str(tmp_path / "adapter")
    )
    inputs = {k: v for k, v in ChatCollator(processor)(rows()).items() if k != "labels"}
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, again.eval()(**inputs).logits)


def test_evaluation_measures_the_same_loss(folder: Path, processor: Any, tmp_path: Path) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), remove_unused_columns=False, use_cpu=True, report_to="none", per_device_eval_batch_size=4
        ),
        eval_dataset=Dataset.from_list(rows()),
        data_collator=ChatCollator(processor),
        compute_loss_func=label_loss,
    )
    batch = collate(
        [encode(ChatCollator(processor).sample(row, 0), processor) for row in rows()],
        packing=True,
        merge=2,
        pad_id=processor.tokenizer.pad_token_id,
    )
    with torch.no_grad():
        expected = next_token_loss(model, batch).item() / batch.count
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_only_label_rows_become_logits(folder: Path, processor: Any) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    inputs = ChatCollator(processor)(rows())
    labels = (inputs.pop("labels") != -100).sum().item()
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[1] == labels < inputs["input_ids"].shape[1] / 2


def test_rows_that_cannot_be_used_are_named(processor: Any) -> None:
    with pytest.raises(BadSample, match="row 1 of the batch"):
        ChatCollator(processor)([rows()[0], {"text": "no chat"}])
    with pytest.raises(BadInput, match="over the limit of 8"):
        ChatCollator(processor, max_length=8)(rows())
    chat = {"user": "3", "assistant": "9"}
    turns: list[dict[str, Any]] = [
        {"role": role, "parts": [{"type": "text", "text": text}]} for role, text in chat.items()
    ] * 2
    turns[1], turns[3] = turns[1] | {"weight": 0.5}, turns[3] | {"weight": 1.0}
    weighted = Sample.model_validate({"id": "a", "task": "chat", "messages": turns})
    with pytest.raises(BadInput, match=r"sample a: an answer has weight 0\.5, which only `qvl-sft train` serves"):
        ChatCollator(processor)([weighted])
    inputs = ChatCollator(processor, train_on="last")([weighted])
    assert (inputs["labels"] != -100).sum() == 2  # the other one is not learned
