"""The arms of QVL: its loop as every package runs it, and the same with one thing taken away.

    python qvl.py FOLDER {qvl,padded,full_logits,dense_mask,two_gradients,unfused}

FOLDER holds the model and `samples.pt`. Every weight is trained in fp32, clipped at 1, at a constant learning rate.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gate import Gate, Stop
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qvl_core.qwen3vl import lora, tied
from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.recipe import blocks
from qvl_core.run import RunFolder
from qvl_core.training import optim
from qvl_core.training.batches import SampleBatches
from qvl_core.training.loop import fit
from qvl_core.training.parts import Callbacks, Loss, ParameterGroup, Parts
from qvl_core.training.world import World


@dataclass
class InMemory:
    """Samples that are read and encoded already, in their order (qvl_core.training.samples.Samples)."""

    samples: list[Encoded]

    def __len__(self) -> int:
        return len(self.samples)

    def length(self, position: int) -> int:
        return len(self.samples[position])

    def encode(self, position: int) -> Encoded:
        return self.samples[position]


def encoded(index: int, sample: dict[str, Tensor]) -> Encoded:
    arrays = {name: tensor.numpy() for name, tensor in sample.items()}
    return Encoded(
        str(index),
        arrays["input_ids"],
        arrays["labels"],
        arrays["mm_token_type_ids"],
        arrays["pixel_values"],
        arrays["image_grid_thw"],
    )


def recipe(folder: Path, steps: int, arm: str) -> blocks.Recipe:
    full = {"mode": "full"}
    return blocks.Recipe.model_validate(
        {
            "version": 1,
            "model": {"name": str(folder), "attention": "sdpa" if arm == "dense_mask" else "packed"},
            "tune": dict.fromkeys(("llm", "merger", "deepstack_mergers", "vision", "embed", "lm_head"), full),
            "data": {"train": "samples.pt"},
            "batch": {"size": 8},
            "optim": {"lr": 1e-4},
            "schedule": {"name": "constant"},
            "train": {"steps": steps, "precision": "fp32"},
        }
    )


def full_logits_loss(model: Any, batch: Batch) -> Tensor:
    """Logits of every row, as the library's forward makes them."""
    hidden = model.model(**batch.inputs(), use_cache=False).last_hidden_state.flatten(0, 1)  # (B * T, D)
    labels = batch.targets.new_full((len(hidden),), -100).index_copy(0, batch.label_rows, batch.targets)
    return cross_entropy(model.lm_head(hidden), labels, reduction="sum")


def unfused(groups: list[ParameterGroup], options: blocks.Optim, fused: Any = optim.adamw) -> torch.optim.AdamW:
    """torch's own choice on a CPU, which is a loop over the tensors."""
    optimizer: torch.optim.AdamW = fused(groups, options)
    for group in optimizer.param_groups:
        group["fused"] = False
    optimizer.defaults["fused"] = False
    return optimizer


def clip_then_update(
    optimizer: torch.optim.AdamW, norm: Tensor, clip: float | None, scale: Tensor, finite: Tensor
) -> None:
    """What the fused update does in one pass."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    torch._foreach_div_(gradients, torch.clamp(norm / (clip or torch.inf), min=1.0))
    optimizer.step()


def main() -> None:
    folder, arm = Path(sys.argv[1]), sys.argv[2]
    gate = Gate()
    torch.set_num_threads(1)
    samples = [encoded(index, sample) for index, sample in enumerate(torch.load(folder / "samples.pt"))]
    settings = recipe(folder, len(samples) // 8, arm)
    model, processor = load_model(settings.model, precision="fp32", device="cpu")
    lora.apply_tune(model, settings.tune, seed=0)
    if arm == "unfused":
        optim.adamw, optim.update = unfused, clip_then_update
    if arm == "two_gradients":
        tied.lookup = lambda core: nullcontext()
    of_tokens = full_logits_loss if arm == "full_logits" else next_token_loss
    last: dict[str, float] = {}

    def loss(model: nn.Module, batch: Batch) -> Loss:
        total = of_tokens(model, batch)
        last["loss"] = total.item() / batch.count
        return Loss(total, {})

    parts = Parts(
        model=model,
        groups=lora.parameter_groups(model, settings.tune, settings.optim),
        batches=SampleBatches(
            InMemory(samples),
            settings.batch,
            seed=0,
            collate=partial(
                collate,
                packing=arm != "padded",
                merge=model.config.vision_config.spatial_merge_size,
                pad_id=processor.tokenizer.pad_token_id,
            ),
            witness=samples[0],
        ),
        loss=loss,
        steps=settings.train.steps or 0,
        identity={},
        base="",
        callbacks=[Callbacks(on_step=lambda _: gate.step_ended(last["loss"]))],
    )
    gate.ready()
    try:
        fit(parts, settings, RunFolder.open(folder / arm), World(0, 1, torch.device("cpu"), "single"))
    except Stop:
        return


if __name__ == "__main__":
    main()
