"""What a method hands to the loop, and what the loop promises to hand back.

The loop calls `loss(model, batch)` inside one root module, so that DDP and FSDP see a single forward; a method
never wraps its model itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from torch import Tensor, nn

from qvl_core.run import Scalar
from qvl_core.training.samples import Bad

if TYPE_CHECKING:
    from qvl_core.training.world import World


class TensorBatch(Protocol):
    """What a loss takes: tensors that can be moved together."""

    def to(self, device: Any, non_blocking: bool = False) -> Self: ...

    def pin_memory(self) -> Self: ...


class Loss(NamedTuple):
    """A loss of one micro-batch, summed (not averaged) over what `Micro.count` counts.

    `parts` are further sums to log, under the same names in every step.
    A named tuple, because FSDP looks for tensors in what a forward returns.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Micro:
    """One forward: a batch, its share of the loss's denominator, and where it stands in the step."""

    batch: TensorBatch | None  # None if all its samples were left out
    count: int  # what the loss is a sum over: labels, sequences or pictures
    slot: int  # index of its first sample or packed row in the step's global batch: seeds dropout and noise
    samples: tuple[str, ...]
    tokens: int  # real tokens, without padding
    bad: tuple[Bad, ...] = ()

    def pin_memory(self) -> "Micro":
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class Batches(Protocol):
    """The batches of a run. `plan` decides (cheap, in the main process); `build` reads and encodes (in workers).

    Both are pure functions of the run's seed and their arguments; objects are pickled to spawned workers. Of several
    processes each must get the same number of micro-batches with a `batch`, or they would wait for one another.
    """

    def plan(self, step: int, rank: int, world: int) -> Any: ...

    def build(self, plan: Any) -> list[Micro]: ...


class ParameterGroup(NamedTuple):
    """Parameters that share a peak learning rate and a weight decay."""

    name: str
    parameters: Mapping[str, nn.Parameter]  # by their name in the model
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Callbacks:
    """They may look; what they return is ignored, and the order of data and randomness does not depend on them.

    Of several processes only the first calls them: they may write files, but not gather or call a sharded model.
    """

    on_step: Callable[[int], None] | None = None
    on_log: Callable[[int, dict[str, float]], None] | None = None
    on_evaluate: Callable[[int, dict[str, float]], None] | None = None
    on_checkpoint: Callable[[int, Path], None] | None = None


@dataclass(frozen=True)
class Parts:
    """A method's side of the bargain.

    `evaluate(model, world, final)` returns figures (the same on every rank), and `preview(model, folder, step)` makes
    pictures (on rank 0), with each evaluation, or every `preview_every` steps and at the end; each rank may call the
    model as often as it likes in them, since sharded weights are gathered before on all ranks. With `in_step` they are
    not: all ranks call both, and the model equally often, in which weights are gathered module by module as in
    training. A preview for which the device's memory is too small, or that raises QVLError where no other rank waits
    for it, ends no run. In a single process a request to stop ends either with a BaseException.
    `export(folder, weights)` writes what the ecosystem loads, from the trained weights by name (on rank 0).
    Checkpoints hold what is in `groups`: a model whose buffers change in training (batch norm) cannot be resumed.
    `identity` is what a checkpoint must match to be continued; `base` names the frozen weights it stands on; `about` is
    recorded in environment.json (its "tune" is the report's tune table). `figures`, of what was done before the first
    step, go into result.json. `judged_by` is what the watched figure depends on beside the validation list, such as how
    answers are written: under early stopping, evaluations of another are not compared. `advice()` says what would need
    less memory, when there was too little of it. `flops_per_token` and `flops_per_count` are for MFU (see `RunLog`).
    """

    model: nn.Module
    groups: Sequence[ParameterGroup]
    batches: Batches
    loss: Callable[[nn.Module, Any], Loss]
    steps: int
    identity: Mapping[str, Any]
    base: str
    about: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Scalar] = field(default_factory=dict)
    judged_by: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Callable[[nn.Module, "World", bool], dict[str, float]] | None = None
    export: Callable[[Path, Mapping[str, Tensor]], None] | None = None
    preview: Callable[[nn.Module, Path, int], None] | None = None
    preview_every: int | None = None
    in_step: bool = False
    shards: Sequence[nn.Module] = ()  # modules that FSDP gathers one by one: transformer blocks
    flops_per_token: float | None = None
    flops_per_count: float = 0.0
    advice: Callable[[], str] | None = None
    callbacks: Sequence[Callbacks] = field(default_factory=tuple)
