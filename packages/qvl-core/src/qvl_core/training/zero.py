"""DeepSpeed's ZeRO behind the loop's own doors: it shares optimizer states (zero1), gradients too (zero2), and weights
too (zero3) between processes.

DeepSpeed exchanges gradients and keeps the flat fp32 parts; what an update is stays ours: AdamW's fused kernel clips
and skips as in every other run, with the norm that DeepSpeed has computed just before. It reads on the host whether
that norm is finite. Checkpoints hold what all runs' do, gathered parameter by parameter.

DeepSpeed is called without accelerate, whose plugin would have transformers load every later model in parts, and which
takes a run on CPUs for one process.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from qvl_core.errors import BadInput
from qvl_core.recipe.blocks import Recipe
from qvl_core.training import adamw_8bit
from qvl_core.training.optim import STATE, by_parameter
from qvl_core.training.parts import Parts
from qvl_core.training.sharding import like, widen
from qvl_core.training.world import World

BUCKET = 5 * 10**7  # values that travel together: buffers of 200 MB, a tenth of DeepSpeed's own
LIVE = 5 * 10**8  # values of weights that ZeRO-3 has whole at a time, if no module has more: 2 GB, half of its own
UPDATED = 10**8  # of a process that are updated together, of which gradients are there twice: 400 MB


class Zero:
    """A root module that DeepSpeed trains, and its optimizer (see `Optimizer`, whose doors it has)."""

    def __init__(self, root: nn.Module, parts: Parts, recipe: Recipe, world: World) -> None:
        if recipe.optim.name != "adamw" or not recipe.speed.fused_optimizer:
            raise BadInput(
                f"parallel.strategy: {world.strategy} shares the averages of fused AdamW alone; leave optim.name and "
                "speed.fused_optimizer as they are, or choose fsdp2."
            )
        self.groups = parts.groups
        self._parameters = {name: p for group in self.groups for name, p in group.parameters.items()}
        self._adamw = _Shared(
            [
                {"params": list(group.parameters.values()), "lr": group.lr, "weight_decay": group.weight_decay}
                for group in self.groups
            ],
            betas=recipe.optim.betas,
            eps=recipe.optim.eps,
            fused=True,
        )
        stage = int(world.strategy.removeprefix("zero"))
        library = _library(world)
        if stage == 3:
            partition(root, parts.shards, set(self._parameters.values()), world.device)
        self._engine, _, _, _ = library.initialize(
            model=root, optimizer=self._adamw, config=_config(stage), dist_init_required=False
        )
        self._zero = self._engine.optimizer
        self._adamw.norm = lambda: self._zero._global_grad_norm
        self._whole_weights = stage < 3
        self._begin()

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._engine(call, *arguments)

    def backward(self, total: Tensor, last: bool) -> None:
        """Add gradients up; all processes' in the last micro-batch of a step."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(total)

    def update(self, rate: float, clip: float | None, scale: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        for group, own in zip(self.groups, self._adamw.param_groups, strict=True):
            own["lr"] = group.lr * rate
        self._adamw.prepare(clip, scale, loss)
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=scale.device).float() / scale
        return norm, torch.isfinite(norm) & torch.isfinite(loss)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self._state()[0]["step"].cpu()
        for name, parameter in self._parameters.items():
            for key in STATE:
                value = step if key == "step" else safe_get_full_optimizer_state(parameter, key)
                yield f"{name}/{key}", value.detach().clone().cpu()

    def load(self, saved: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        # The whole of a parameter with fewer values than processes is more than ZeRO-3 can take.
        put = safe_set_full_optimizer_state if self._whole_weights else safe_set_local_optimizer_state
        given = by_parameter(saved, self._parameters)
        for name, state in given.items():
            parameter, values = self._parameters[name], adamw_8bit.in_fp32(state)
            for key in ("exp_avg", "exp_avg_sq"):
                put(parameter, like(values[key], parameter), key)
            for flat in self._state():
                flat["step"].copy_(values["step"])

    def weights_changed(self) -> None:
        """Take over weights that were written into the model."""
        self._zero.refresh_fp32_params()

    def whole(self) -> AbstractContextManager[Any]:
        """All weights in place on every process, which may then call the model unequally often."""
        if self._whole_weights:
            return nullcontext()
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        return unwrap_model_for_generation(self._engine)

    def _begin(self) -> None:
        """Averages of zero. DeepSpeed, which has none before the first step, could not be given a saved one."""
        for flat in self._flat():
            self._adamw.state[flat] = {
                "step": torch.zeros((), device=flat.device),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        if self._whole_weights:
            self._zero._lazy_init_hp_params_optimizer_state()

    def _flat(self) -> list[nn.Parameter]:
        """This process's fp32 parts, one for each group."""
        name = "single_partition_of_fp32_groups" if self._whole_weights else "fp32_partitioned_groups_flat"
        return list(getattr(self._zero, name))

    def _state(self) -> list[dict[str, Tensor]]:
        return [self._adamw.state[flat] for flat in self._flat()]


def partition(
    root: nn.Module, shards: Sequence[nn.Module], trained: Collection[nn.Parameter], device: torch.device
) -> None:
    """Leave this process's part of each weight on its device, module by module. What is trained becomes fp32 just
    before: beside the parts, no device ever holds more than a module."""
    from deepspeed.runtime.zero import Init

    for module in (*shards, root):
        widen([p for p in module.parameters() if p in trained and not hasattr(p, "ds_id")], device)
        Init(module=module, config_dict_or_path=_config(3))
    for buffer in root.buffers():
        buffer.data = buffer.data.to(device)


class _Shared(torch.optim.AdamW):
    """AdamW on flat parts, which DeepSpeed calls once for each: clipped by the norm of all gradients."""

    norm: Callable[[], Any]

    def prepare(self, clip: float | None, scale: Tensor, loss: Tensor) -> None:
        self._clip, self._scale = clip, scale
        setattr(self, "found_inf", (~torch.isfinite(loss)).float())  # noqa: B010 - attributes torch reads

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        norm = torch.as_tensor(self.norm(), device=self._scale.device).float() / self._scale
        factor = torch.ones_like(norm) if self._clip is None else torch.clamp(norm / self._clip, min=1.0)
        setattr(self, "grad_scale", self._scale * factor)  # noqa: B010
        super().step()


def _config(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # the loop has its own batches, means and clipping
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": LIVE,
            "stage3_max_reuse_distance": LIVE,
            "sub_group_size": UPDATED,
            "stage3_param_persistence_threshold": 0,  # else small weights would lie in two places
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def _library(world: World) -> Any:
    """DeepSpeed, in the process group that is there already."""
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ImportError:
        raise BadInput(
            f"parallel.strategy: {world.strategy} needs deepspeed; pip install 'qvl-core[zero]', or choose fsdp2."
        ) from None
    logger.setLevel(logging.ERROR)
    if world.device.type == "cpu":  # gloo adds up; a kernel of its own would be compiled for minutes
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
