"""The arms of QVL: its loop as every package runs it, and the same with one thing taken away.

    python qvl.py FOLDER {qvl,padded,full_logits,dense_mask,two_gradients,unfused,conv_patches,with_gradients,cached}

FOLDER holds the model, `samples.pt`, and `method`: full, lora or qlora. Trained weights are in fp32, clipped at 1, at a
constant learning rate.
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

from qvl_core.qwen3vl import lora, tied
from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.features import CachedCollate, FeatureCache, open_cache
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.qwen3vl.quantize import quantize
from qvl_core.qwen3vl.speed import speed_up
from qvl_core.recipe import blocks
from qvl_core.run import RunFolder
from qvl_core.training.batches import SampleBatches
from qvl_core.training.loop import fit
from qvl_core.training.parts import Callbacks, Loss, Parts
from qvl_core.training.world import World

SWITCHED = {  # arms that are a switch of the recipe
    "full_logits": {"label_rows": False},
    "unfused": {"fused_optimizer": False},
    "conv_patches": {"linear_patches": False},
    "with_gradients": {"frozen_features": False},
    "compiled": {"compile": True},
}


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
        arrays.get("pixel_values"),
        arrays.get("image_grid_thw"),
        arrays.get("pixel_values_videos"),
        arrays.get("video_grid_thw"),
    )


def recipe(folder: Path, steps: int, arm: str) -> blocks.Recipe:
    method = (folder / "method").read_text(encoding="utf-8")
    model = {"name": str(folder), "attention": "sdpa" if arm == "dense_mask" else "packed"}
    if method == "qlora":
        model["quantization"] = "nf4"
    groups = ("llm", "merger", "deepstack_mergers", "vision", "embed", "lm_head")
    adapted = {"llm": blocks.Group(mode="lora", rank=16)}
    tune = dict.fromkeys(groups, blocks.Group(mode="full")) if method == "full" else adapted
    return blocks.Recipe.model_validate(
        {
            "version": 1,
            "model": model,
            "tune": tune,
            "data": {"train": "samples.pt"},
            "batch": {"size": 8},
            "optim": {"lr": 1e-4},
            "schedule": {"name": "constant"},
            "train": {"steps": steps, "precision": "fp32", "recompute": arm == "recomputed"},
            "speed": SWITCHED.get(arm, {}),
        }
    )


def prepared(settings: blocks.Recipe) -> tuple[Any, Any]:
    """The model, set up as the recipe says, and its processor."""
    plain = settings.model.model_copy(update={"quantization": None})  # adapters are put on the weights in full
    model, processor = load_model(plain, precision="fp32", device="cpu")
    lora.apply_tune(model, settings.tune, seed=0, quantization=settings.model.quantization)
    if settings.model.quantization:
        quantize(model, settings.model.quantization)
    speed_up(model, settings.speed, settings.train.recompute)
    return model, processor


def filled_cache(model: Any, folder: Path, collate: Any, samples: list[Encoded]) -> FeatureCache:
    """A cache as it is after the first epoch."""
    cache = open_cache(model, folder / "features", gib=1, precision="fp32")
    for sample in samples:
        cache.encode(model, CachedCollate(collate, cache)([sample]))
    return cache


def main() -> None:
    folder, arm = Path(sys.argv[1]), sys.argv[2]
    gate = Gate()
    torch.set_num_threads(1)
    samples = [encoded(index, sample) for index, sample in enumerate(torch.load(folder / "samples.pt"))]
    settings = recipe(folder, len(samples) // 8, arm)
    model, processor = prepared(settings)
    if arm == "two_gradients":
        tied.lookup = lambda core: nullcontext()
    merge, pad_id = model.config.vision_config.spatial_merge_size, processor.tokenizer.pad_token_id
    together: Any = partial(collate, packing=arm != "padded", merge=merge, pad_id=pad_id)
    cache = filled_cache(model, folder, together, samples) if arm == "cached" else None
    last: dict[str, float] = {}

    def loss(model: nn.Module, batch: Any) -> Loss:
        encoded = None
        if cache is not None:
            encoded, batch = cache.encode(model, batch), batch.batch
        total = next_token_loss(model, batch, label_rows=settings.speed.label_rows, encoded=encoded)
        last["loss"] = total.item() / batch.count
        return Loss(total, {})

    parts = Parts(
        model=model,
        groups=lora.parameter_groups(model, settings.tune, settings.optim),
        batches=SampleBatches(
            InMemory(samples),
            settings.batch,
            seed=0,
            collate=together if cache is None else CachedCollate(together, cache),
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
