"""How the demo trains: core's loop and loss on chats; what comes out is a whole model, adapters folded in.

qvl-sft does the same with more choices: lists of sources, adapters of their own, several devices, memory plans.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.generate import exact_match, generate
from qvl_core.qwen3vl.load import fingerprint, load_model, quiet
from qvl_core.qwen3vl.lora import apply_tune, merge_adapter, parameter_groups, save_adapter
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.recipe.blocks import Model, Recipe
from qvl_core.report import report
from qvl_core.run import RunFolder
from qvl_core.training.batches import SampleBatches
from qvl_core.training.conduct import conduct
from qvl_core.training.parts import Loss, Parts
from qvl_core.training.world import World
from qvl_data.chat import prompt
from qvl_data.sample import Sample
from qvl_data.sources import Mixture
from qvl_data.stream import ChatSamples, witness
from qvl_vision.checkpoint import mark_merger_trained

ANSWER = 2  # tokens of an answer, unless it is longer: a digit and the end of the turn


def recipe_of(model: Path, data: Path, tune: Mapping[str, Any], steps: int, seed: int, lr: float = 1e-3) -> Recipe:
    """A run of `steps` steps of 32 chats; `tune` as recipes have it."""
    return Recipe.model_validate(
        {
            "version": 1,
            "model": {"name": str(model)},
            "tune": tune,
            "data": {"train": [{"source": str(data)}]},
            "batch": {"size": 32, "max_length": 256},
            "optim": {"lr": lr},
            "schedule": {"name": "cosine", "warmup": 10},
            "train": {"steps": steps, "seed": seed},
            "checkpoint": {"every": 50},
            "evaluate": {"every": 20, "samples": 120},
        }
    )


def train(recipe: Recipe, out: Path, watched: Sequence[Sample], package: str = "qvl-vision") -> Path:
    """Train in the run folder `out`, or go on with it; gives the folder of the trained model.

    watched  held-out samples whose accuracy is drawn as a curve (the first `evaluate.samples`); nothing depends on it
    """
    conduct(package, recipe, out, partial(build, watched=watched), report=report)
    return RunFolder(out).final


def build(recipe: Recipe, run: RunFolder, world: World, watched: Sequence[Sample]) -> Parts:
    """What the loop trains: the model of `recipe.model`, its tune groups, the chats of `recipe.data.train`."""
    model, processor = load_model(recipe.model, precision="fp32", device=world.device)
    table = apply_tune(model, recipe.tune, seed=recipe.train.seed, optim=recipe.optim)
    chats = Mixture(recipe.data.train)
    samples = ChatSamples(chats, processor, recipe.train.seed, recipe.batch.max_length)
    merge, pad = processor.image_processor.merge_size, processor.tokenizer.pad_token_id
    packed = partial(collate, packing=recipe.batch.packing, merge=merge, pad_id=pad)
    seen = watched[: recipe.evaluate.samples]
    assert recipe.train.steps is not None
    identity = recipe.model_dump(mode="json", include={"tune", "batch", "optim", "schedule", "train"})
    return Parts(
        model=model,
        groups=parameter_groups(model, recipe.tune, recipe.optim),
        batches=SampleBatches(samples, recipe.batch, recipe.train.seed, packed, witness(processor)),
        loss=_loss,
        steps=recipe.train.steps,
        identity=identity | {"content": chats.fingerprint()},
        base=fingerprint(model),
        about={"tune": [asdict(row) for row in table.rows]},
        evaluate=partial(_evaluate, processor=processor, samples=seen) if seen else None,
        export=partial(_export, model, processor, recipe.model),
    )


def answers(model: Any, processor: Any, samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """Greedy answers to the samples' questions, and what should have been answered."""
    questions, references = zip(*(prompt(sample, processor) for sample in samples), strict=True)
    return [answer.strip() for answer in generate(model, processor, questions, ANSWER)], list(references)


def accuracy(model: Any, processor: Any, samples: Sequence[Sample]) -> float:
    """Exact match of the greedy answers."""
    return exact_match(*answers(model, processor, samples))


def _loss(model: nn.Module, batch: Batch) -> Loss:
    return Loss(next_token_loss(model, batch), {})


def _evaluate(
    model: nn.Module, world: World, final: bool, processor: Any, samples: Sequence[Sample]
) -> dict[str, float]:
    return {"held_out_accuracy": accuracy(model, processor, samples)}


def _export(model: Any, processor: Any, base: Model, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Model and processor as one folder; what LoRA learned is folded into the weights."""
    whole, _ = load_model(base, precision="fp32", device="cpu")
    if hasattr(model, "peft_config"):
        with tempfile.TemporaryDirectory() as aside:
            save_adapter(model, Path(aside), base.name, state_dict=weights)
            merge_adapter(whole, Path(aside))
    else:
        own = dict(whole.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)
    mark_merger_trained(whole)
    with quiet(bars=False):
        whole.save_pretrained(folder)
    processor.save_pretrained(folder)
