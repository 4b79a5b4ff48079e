"""Did you mean: from an unknown key to the one that was meant."""

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from qvl_core.recipe.typed import alternatives

# What transformers, TRL, LLaMA-Factory, ms-swift and the source documents call it, and what it is called here.
PEERS = {
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "adam_epsilon": "optim.eps",
    "attn_implementation": "model.attention",
    "base_model": "model.name",
    "bf16": "train.precision",
    "cutoff_len": "batch.max_length",
    "data_path": "data.train",
    "dataloader_num_workers": "data.workers",
    "dataset": "data.train",
    "dataset_use": "data.train",
    "deepspeed": "parallel.strategy",
    "early_stopping_patience": "evaluate.early_stop.patience",
    "eval_dataset": "data.validation",
    "eval_steps": "evaluate.every",
    "fp16": "train.precision",
    "freeze_merger": "tune.merger.mode",
    "freeze_vision": "tune.vision.mode",
    "fsdp": "parallel.strategy",
    "gradient_accumulation_steps": "batch.size",
    "gradient_checkpointing": "train.recompute",
    "image_folder": "data.media_root",
    "image_max_pixels": "media.max_pixels",
    "learning_rate": "optim.lr",
    "logging_steps": "log.every",
    "lora_alpha": "tune.llm.alpha",
    "lora_dropout": "tune.llm.dropout",
    "lora_r": "tune.llm.rank",
    "lora_rank": "tune.llm.rank",
    "lr_scheduler_type": "schedule.name",
    "max_grad_norm": "train.clip",
    "max_new_tokens": "evaluate.max_new_tokens",
    "max_seq_length": "batch.max_length",
    "max_steps": "train.steps",
    "media_dir": "data.media_root",
    "mixed_precision": "train.precision",
    "mm_projector_lr": "tune.merger.lr",
    "model_max_length": "batch.max_length",
    "model_name_or_path": "model.name",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "optim_lr": "optim.lr",
    "per_device_train_batch_size": "batch.micro",
    "report_to": "log.to",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "seed": "train.seed",
    "train_file": "data.train",
    "tune_mm_llm": "tune.llm.mode",
    "tune_mm_mlp": "tune.merger.mode",
    "tune_mm_vision": "tune.vision.mode",
    "use_flash_attn": "model.attention",
    "validation_file": "data.validation",
    "vision_tower_lr": "tune.vision.lr",
    "warmup_ratio": "schedule.warmup",
    "warmup_steps": "schedule.warmup",
    "weight_decay": "optim.weight_decay",
}


def suggestion(kind: type[BaseModel], block: str, key: str, siblings: list[str]) -> str:
    """The end of the sentence about an unknown key of `block`: what was probably meant, else what is allowed there."""
    meant = _meant(kind, block, key, siblings)
    if meant:
        return f'did you mean "{meant}"?'
    return f"allowed here: {', '.join(siblings)}" if siblings else "nothing can be set here"


def _meant(kind: type[BaseModel], block: str, key: str, siblings: list[str]) -> str | None:
    here = f"{block}." if block else ""
    if key in PEERS:
        first, *_, last = PEERS[key].split(".")
        if first == block.split(".")[0] and last in siblings:  # tune.merger.lora_r is tune.merger.rank
            return here + last
        if first in kind.model_fields:
            return PEERS[key]
    if near := get_close_matches(key.lower(), siblings, n=1):
        return here + near[0]
    return next((path for path in _paths(kind) if path.split(".")[-1] == key), None)  # right name, wrong block


def close(word: str, known: list[str]) -> str:
    """`; did you mean "x"?` or nothing."""
    near = get_close_matches(word.lower(), known, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _paths(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted paths of all fields in blocks of their own (not inside lists and named groups)."""
    paths: list[str] = []
    for name, field in kind.model_fields.items():
        paths.append(prefix + name)
        for one in alternatives(field.annotation):
            if _is_block(one):
                paths += _paths(one, f"{prefix}{name}.")
    return paths


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
