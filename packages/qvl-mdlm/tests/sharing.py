"""One step and an evaluation of the trainer, in as many processes as start this: `sharing.py MODEL OUT BATCH`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from conversations import row, rows
from safetensors.torch import save_model
from transformers import AutoProcessor, TrainingArguments

from qvl_mdlm.collator import create_qwen3_vl_collator
from qvl_mdlm.model import Qwen3VLForMaskedLM
from qvl_mdlm.trainer import Qwen3VLTrainer


def run(base: str, out: Path, size: int) -> None:
    """Train on four rows, `size` in each forward, and measure five others; weights and loss are left in `out`."""
    processor = AutoProcessor.from_pretrained(base)
    options: dict[str, Any] = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    options |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    options |= {"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}
    trainer = Qwen3VLTrainer(
        model=Qwen3VLForMaskedLM.from_pretrained(base, dtype=torch.float64),
        args=TrainingArguments(
            str(out),
            per_device_train_batch_size=size,
            per_device_eval_batch_size=size,
            train_sampling_strategy="sequential",
            **options,
        ),
        train_dataset=rows(),
        eval_dataset=[*rows(), row("2 and 1?", "3, and so it is.")],
        data_collator=create_qwen3_vl_collator(processor),
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        save_model(trainer.model, str(out / "trained.safetensors"))
        (out / "loss.json").write_text(json.dumps([trainer.state.log_history[0]["loss"], loss]), "utf-8")


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
