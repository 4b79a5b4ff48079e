"""The device side of a step: forward and backward in the right precision and strategy, and one fused update.

Nothing here waits for the device: what a step computed stays in `Figures` until someone asks.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from qvl_core.errors import QVLError
from qvl_core.recipe.blocks import Recipe
from qvl_core.training.average import Average
from qvl_core.training.optim import Optimizer
from qvl_core.training.parts import Loss, Micro, ParameterGroup, Parts
from qvl_core.training.schedule import lr_factor
from qvl_core.training.seeds import reseed
from qvl_core.training.sharding import full_shape, like, local, whole, widen
from qvl_core.training.world import World
from qvl_core.training.zero import Zero

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GROWTH_STEPS = 2000  # finite fp16 steps after which the loss scale doubles (torch.amp.GradScaler's figure)


class Root(nn.Module):
    """One module whose forward is any function of the model, so that DDP and FSDP see losses and generation alike."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(self.model, *arguments)


class Figures(NamedTuple):
    """What one step found, still on the device: values (3 + N,) fp32 are

    the norm of the mean gradient before clipping,
    1 if the update was applied, else 0,
    1 if it was not for another reason than a loss scale that was too high, else 0,
    the loss and its parts, N sums over the global batch, by their names.
    """

    names: tuple[str, ...]  # (N,)
    values: Tensor


class Engine:
    """Model, optimizer and loss scale of a run on this process."""

    def __init__(self, parts: Parts, recipe: Recipe, world: World) -> None:
        self.parts, self.recipe, self.world = parts, recipe, world
        self.precision = resolve_precision(recipe.train.precision, world.device)
        set_products(recipe, world.device)
        self._trained = {parameter for group in parts.groups for parameter in group.parameters.values()}
        if world.strategy not in ("fsdp2", "zero3"):  # which do it module by module, and leave a part of each
            parts.model.to(world.device)
            widen(self._trained, world.device)
        self._root = Root(parts.model)
        self._zero = Zero(self._root, parts, recipe, world) if world.strategy.startswith("zero") else None
        self._forward = self._zero.forward if self._zero else self._wrap(self._root)
        self._sharded = [module for module in self._root.modules() if isinstance(module, FSDPModule)]
        self.groups = self._wrapped_groups()
        self.optimizer = self._zero or Optimizer(self.groups, recipe)
        own = {name: p for group in self.groups for name, p in group.parameters.items()}
        self.average = Average(own, recipe.optim.ema, world.device) if recipe.optim.ema else None
        self.scale = torch.tensor(65536.0 if self.precision == "fp16" else 1.0, device=world.device)
        self.finite_steps = torch.zeros((), device=world.device)
        parts.model.train()

    def step(self, step: int, share: list[Micro], count: int) -> Figures:
        """Forward, backward and update of the global step `step`, whose loss is a sum over `count` on all processes."""
        device = self.world.device
        sums = torch.zeros((), device=device)
        for index, micro in enumerate(share):
            assert micro.batch is not None
            reseed(self.recipe.train.seed, "step", step, micro.slot)
            last = index == len(share) - 1
            with self._synchronise(last):
                loss: Loss = self._forward(self._loss, micro.batch.to(device, non_blocking=True))
                # DDP, FSDP and ZeRO average over processes; the loss is a mean over the global count.
                total = loss.total * (self.scale * self.world.size / count)
                if self._zero:
                    self._zero.backward(total, last)
                elif total.requires_grad:  # text alone reaches nothing that is trained where only a merger is
                    total.backward()
            sums = sums + torch.stack([loss.total, *loss.parts.values()]).detach().float()  # (1 + parts,)
        sums = self.world.reduce(sums)
        found = self._update(step, loss=sums[0])
        return Figures(("loss", *loss.parts), torch.cat([found, sums]))

    def call(self, function: Callable[[nn.Module], Any], in_step: bool = False) -> Any:
        """Run `function(model)` in evaluation mode without gradients, with the averaged weights if there are any.

        in_step  all processes call the model equally often; sharded weights are gathered module by module

        Else they are all gathered before: processes may then call the model unequally often, and generation does not
        gather them anew for each token. That needs room for the whole model in the compute type on every device.
        """
        kept = () if in_step else self._sharded

        def whole(model: nn.Module) -> Any:
            for module in kept:
                module.unshard()
            return self._cast(function, model)

        self.parts.model.eval()
        for module in kept:
            module.set_reshard_after_forward(False, recurse=False)
        try:
            averaged = self.average.in_place() if self.average else nullcontext()
            gathered = self._zero.whole() if self._zero and not in_step else nullcontext()
            with torch.no_grad(), averaged, gathered:
                return self._root(whole)
        finally:
            for module in self._sharded:
                module.set_reshard_after_forward(module in self.parts.shards, recurse=False)
                module.reshard()  # the root too: weights that are loaded later would not be seen
            self.parts.model.train()

    def lr(self, step: int) -> float:
        """Learning rate of the first group at `step`, for the log."""
        return float(self.groups[0].lr * lr_factor(self.recipe.schedule, step, self.parts.steps))

    def tensors(self) -> dict[str, Iterator[tuple[str, Tensor]]]:
        """All that a checkpoint holds, gathered one by one; every process has to draw all of it."""
        weights = ((name, whole(p)) for group in self.groups for name, p in group.parameters.items())
        found = {"weights": weights, "optimizer": self.optimizer.tensors()}
        return found | ({"average": self.average.tensors()} if self.average else {})

    def load(
        self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], average: Mapping[str, Tensor] | None = None
    ) -> None:
        """Put back what `tensors` gave."""
        self.load_weights(weights)
        self.optimizer.load(state)
        if self.average:
            self.average.load(average or weights)  # `optim.ema` is new: it starts here

    def settle(self, weights: Mapping[str, Tensor]) -> None:
        """End with the weights that final/ gets."""
        self.load_weights(weights)
        self.average = None

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put back trained weights. Raises QVLError if names or shapes differ."""
        fix = "undo this change of the recipe, start over with --fresh, or choose another --out."
        own = {name: p for group in self.groups for name, p in group.parameters.items()}
        if weights.keys() != own.keys():
            odd = sorted(weights.keys() ^ own.keys())
            raise QVLError(f"the checkpoint's weights are others than the recipe's: {', '.join(odd[:3])}; {fix}")
        with torch.no_grad():
            for name, parameter in own.items():
                given, own_shape = weights[name], full_shape(parameter)
                if given.shape != own_shape:
                    raise QVLError(f"{name} is {tuple(given.shape)} in the checkpoint, {tuple(own_shape)} here; {fix}")
                local(parameter).copy_(local(like(given, parameter)))
        if self._zero:
            self._zero.weights_changed()

    def state(self) -> dict[str, float]:
        state = {"scale": self.scale.item(), "finite_steps": self.finite_steps.item()}
        return state | ({"averaged": self.average.updates.item()} if self.average else {})

    def load_scalars(self, state: Mapping[str, float]) -> None:
        self.scale.fill_(state["scale"])
        self.finite_steps.fill_(state["finite_steps"])
        if self.average:
            self.average.updates.fill_(state.get("averaged", 0))

    def _update(self, step: int, loss: Tensor) -> Tensor:
        """Apply the gradients if they and the loss are finite. Gives the first three figures."""
        rate = lr_factor(self.recipe.schedule, step, self.parts.steps)
        norm, finite = self.optimizer.update(rate, self.recipe.train.clip, self.scale, loss)
        if self.average:
            self.average.update(finite)
        poisoned = ~finite & (~torch.isfinite(loss) | (self.scale <= 1))
        if self.precision == "fp16":
            self._rescale(finite)
        return torch.stack([norm, finite.float(), poisoned.float()])  # (3,)

    def _rescale(self, finite: Tensor) -> None:
        """Halve the loss scale after an overflow, double it after GROWTH_STEPS finite steps."""
        self.finite_steps = torch.where(finite, self.finite_steps + 1, 0.0)
        grown = self.finite_steps >= GROWTH_STEPS
        factor = torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)
        self.scale = (self.scale * factor).clamp(min=1.0)
        self.finite_steps = torch.where(grown, 0.0, self.finite_steps)

    def _loss(self, model: nn.Module, batch: Any) -> Any:
        return self._cast(self.parts.loss, model, batch)

    def _cast(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call under autocast; inside the root's forward, so that recomputed layers see it too."""
        enabled = self.precision != "fp32"
        with torch.autocast(self.world.device.type, DTYPES[self.precision] if enabled else None, enabled=enabled):
            return function(*arguments)

    def _wrap(self, root: Root) -> nn.Module:
        """The module whose forward and backward exchange gradients with the other processes."""
        if self.world.strategy == "ddp" and self.world.size > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 renames broadcast_buffers
                # Frozen weights are the same everywhere; sent around, some in fewer bits could not be flattened.
                frozen = [name for name, parameter in root.named_parameters() if not parameter.requires_grad]
                DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(root, frozen)
                return DistributedDataParallel(root, broadcast_buffers=False, gradient_as_bucket_view=True)
        if self.world.strategy == "fsdp2":
            dtype = None if self.precision == "fp32" else DTYPES[self.precision]
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
            _assert_apart(root, self.parts.shards)
            for module in (*self.parts.shards, root):
                self._shard(module, mesh=self.world.mesh, mp_policy=policy)
        return root

    def _shard(self, module: nn.Module, **how: Any) -> None:
        """`fully_shard`, which moves a module to its device. What is trained becomes fp32 just before, so that of a
        large model, which may lie in the memory map of its file, the host never holds more than a module in fp32.
        Whole weights go, though `Parts.groups` still names them."""
        weights = [p for p in module.parameters() if not isinstance(p, DTensor)]
        widen(self._trained.intersection(weights), self.world.device)
        fully_shard(module, **how)
        for parameter in weights:
            parameter.data = parameter.new_empty(0)

    def _wrapped_groups(self) -> list[ParameterGroup]:
        """The groups with the parameters as they are after sharding (FSDP replaces them)."""
        now = dict(self.parts.model.named_parameters())
        return [
            group._replace(parameters={name: now[name] for name in group.parameters}) for group in self.parts.groups
        ]

    def _synchronise(self, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients in the last micro-batch's backward only (FSDP: in each, which holds sharded gradients)."""
        if isinstance(self._forward, DistributedDataParallel) and not last:
            return self._forward.no_sync()
        return nullcontext()


def _assert_apart(root: nn.Module, shards: Sequence[nn.Module]) -> None:
    """A weight that two modules share has to be gathered with both of them."""
    shard_of = {module: number for number, shard in enumerate(shards) for module in shard.modules()}
    places: dict[nn.Parameter, int | None] = {}
    for name, module in root.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            place = places.setdefault(parameter, shard_of.get(module))
            assert place == shard_of.get(module), (
                f"{name.removeprefix('model.')}.{key} is a weight of one of Parts.shards and of a module outside it; "
                "leave that shard out, or gather both in one."
            )


def set_products(recipe: Recipe, device: torch.device) -> None:
    """How fp32 products are computed from here on."""
    if device.type == "cuda":  # elsewhere it would be another setting: bf16 products on some processors
        torch.set_float32_matmul_precision("high" if recipe.train.tf32 else "highest")


def resolve_precision(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """`auto` is bf16 on a GPU that has it, fp16 on an older one, fp32 on a CPU."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
