"""A run with everything but Qwen3-VL: a network with dropout on noise, small enough to be killed at every step."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.recipe.blocks import Recipe
from qvl_core.training.parts import Loss, Micro, ParameterGroup, Parts
from qvl_core.training.samples import Bad
from qvl_core.training.seeds import mix

STEPS = 8
SIZE = 8  # samples per step


@dataclass(frozen=True)
class ToyBatch:
    x: Tensor  # (B, 4)
    y: Tensor  # (B, 1)
    weight: Tensor  # (B,) the sample's share of the count

    def to(self, device: Any, non_blocking: bool = False) -> "ToyBatch":
        tensors = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in vars(self).items()}
        return type(self)(**tensors)

    def pin_memory(self) -> "ToyBatch":
        return type(self)(**{name: tensor.pin_memory() for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class ToyBatches:
    """Sample s of step t is a function of (seed, t, s), noise included; it counts s + 1, so means are weighted."""

    seed: int
    micro: int = 4
    nan_steps: tuple[int, ...] = ()
    bad_steps: tuple[int, ...] = ()
    dropped: str = ""  # the one sample that is left out in each of bad_steps, as the recipe says

    def plan(self, step: int, rank: int, world: int) -> tuple[int, list[list[int]]]:
        slots = list(range(SIZE))[rank::world]
        return step, [slots[i : i + self.micro] for i in range(0, len(slots), self.micro)]

    def build(self, plan: tuple[int, list[list[int]]]) -> list[Micro]:
        step, groups = plan
        return [self._micro(step, slots) for slots in groups]

    def _micro(self, step: int, slots: list[int]) -> Micro:
        rows = [torch.randn(4, generator=torch.Generator().manual_seed(mix(self.seed, step, slot))) for slot in slots]
        x = torch.stack(rows)
        y = x.sum(1, keepdim=True)
        if step in self.nan_steps and 0 in slots:
            y[0] = torch.nan
        weight = torch.tensor([float(slot + 1) for slot in slots])
        name = self.dropped or f"bad-{step}"
        found = Bad(name, "broken", f"sample {name} is broken; mend it.", tolerated=bool(self.dropped))
        bad = (found,) if step in self.bad_steps and 0 in slots else ()
        count = sum(slot + 1 for slot in slots)
        return Micro(
            ToyBatch(x, y, weight), count, slots[0], tuple(f"{step}/{slot}" for slot in slots), len(slots), bad
        )


class LoudBatches(ToyBatches):
    """A worker that opens them sends SIGTERM to its whole process group, as a cluster may while workers start."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        os.killpg(0, signal.SIGTERM)


def network(seed: int = 0, dropout: float = 0.1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 1))


def toy_loss(model: nn.Module, batch: ToyBatch) -> Loss:
    error = ((model(batch.x) - batch.y) ** 2).squeeze(1) * batch.weight
    return Loss(error.sum(), {"error": error.sum()})


def toy_parts(model: nn.Module, batches: ToyBatches | None = None, **other: Any) -> Parts:
    decayed = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    plain = {name: p for name, p in model.named_parameters() if p.ndim == 1}

    def export(folder: Path, weights: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        save_file(dict(weights), folder / "model.safetensors")

    def evaluate(model: nn.Module, world: Any, final: bool) -> dict[str, float]:
        x = torch.linspace(-1, 1, 32).reshape(8, 4)
        return {"validation_loss": float(((model(x) - x.sum(1, keepdim=True)) ** 2).mean())}

    given = {
        "model": model,
        "groups": [ParameterGroup("net", decayed, 1e-2, 0.1), ParameterGroup("net", plain, 1e-2, 0.0)],
        "batches": batches or ToyBatches(seed=3),
        "loss": toy_loss,
        "steps": STEPS,
        "identity": {"optim": {"lr": 1e-2}},
        "base": "none",
        "evaluate": evaluate,
        "export": export,
        "shards": [model[0]] if isinstance(model, nn.Sequential) else (),
    }
    return Parts(**(given | other))


def toy_recipe(**blocks: Any) -> Recipe:
    given: dict[str, Any] = {
        "version": 1,
        "model": {"name": "toy"},
        "tune": {"net": {"mode": "full"}},
        "data": {"train": "none"},
        "batch": {"size": SIZE},
        "train": {"steps": STEPS, "seed": 3},
        "checkpoint": {"every": 2},
        "log": {"every": 2},
    }
    return Recipe.model_validate(given | blocks)
