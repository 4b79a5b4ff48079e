"""The arms of Hugging Face: transformers.Trainer as usually written, the same tuned, and TRL's SFTTrainer.

    python hf.py FOLDER {trainer,tuned,grouped,trl}

FOLDER holds the model, `samples.pt`, their orders by length, `orders.pt`, and `method`: full, lora or qlora (peft of
rank 16 on the language model's linear layers; nf4 by bitsandbytes, which leaves tower and head as they are). All arms
pad on the right, train in fp32 with the trainer's own loss, clip at 1, and keep the learning rate constant. The
library's default optimizer is the fused AdamW by now, so tuning leaves length grouping. Gradient checkpointing is off
everywhere: TRL's default would cost it a second forward for memory that is not short here.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from gate import Gate, Stop
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    Qwen3VLForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

Sample = dict[str, Tensor]
MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 1,
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    "remove_unused_columns": False,
    "train_sampling_strategy": "sequential",  # the samples lie in the order that all arms take
    "optim": "adamw_torch_fused",  # the default
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """The padding collator of the documents, from encoded samples on."""

    def padded(name: str, fill: int) -> Tensor:
        return pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=fill)

    media = [name for name in MEDIA if name in samples[0]]
    return {
        **{name: torch.cat([sample[name] for sample in samples]) for name in media},
        "input_ids": padded("input_ids", 0),
        "attention_mask": pad_sequence([torch.ones_like(sample["input_ids"]) for sample in samples], batch_first=True),
        "labels": padded("labels", -100),
        "mm_token_type_ids": padded("mm_token_type_ids", 0),
    }


def load(folder: Path) -> Any:
    """The model, as the documents prepare it for the method."""
    method = (folder / "method").read_text(encoding="utf-8")
    options: dict[str, Any] = {"dtype": torch.float32}
    if method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["model.visual", "lm_head"],
        )
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, **options)
    if method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=r".*language_model.*_proj"))


def build(arm: str, folder: Path, samples: list[Sample], gate: Gate) -> Trainer:
    """The trainer of an arm, which ends each step at the gate."""
    base: Any = Trainer
    config: Any = TrainingArguments
    options, data, collator = OPTIONS, samples, collate
    if arm == "trl":
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        base, config = SFTTrainer, SFTConfig
        options = OPTIONS | {"gradient_checkpointing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
        # It takes nothing but a Dataset, whose rows would be converted from Arrow at every step.
        data = Dataset.from_dict({"index": range(len(samples))})
        collator = lambda rows: collate([samples[row["index"]] for row in rows])  # noqa: E731

    class Paced(base):
        def training_step(self, *arguments: Any, **options: Any) -> Tensor:
            self.step_loss = super().training_step(*arguments, **options)
            return self.step_loss

    class Pace(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.step_ended(trainer.step_loss.item())

    trainer = Paced(
        model=load(folder),
        args=config(output_dir=str(folder / arm), **options),
        train_dataset=data,
        data_collator=collator,
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Pace()],
    )
    return trainer


def main() -> None:
    folder, arm = Path(sys.argv[1]), sys.argv[2]
    gate = Gate()
    torch.set_num_threads(1)
    samples: list[Sample] = torch.load(folder / "samples.pt")
    order = torch.load(folder / "orders.pt").get(arm, range(len(samples)))
    trainer = build(arm, folder, [samples[i] for i in order], gate)
    gate.ready()
    try:
        trainer.train()
    except Stop:
        return


if __name__ == "__main__":
    main()
