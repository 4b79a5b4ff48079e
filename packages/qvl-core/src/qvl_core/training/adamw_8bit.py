"""AdamW whose two averages lie in 8 bits between steps (Dettmers et al. 2021, arXiv:2110.02861).

bitsandbytes packs them in blocks of 256 values with one fp32 scale each; for an update they are unpacked, a bounded
piece at a time, and torch's AdamW does the rest. Its fused kernel divides gradients by `grad_scale` and leaves weights
and step counts alone where `found_inf` is 1; the old codes are then kept on the device, so that nothing waits for it.

(bitsandbytes' own optimizer runs on no CPU and counts steps on the host; torchao's compiles every shape.)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from qvl_core.errors import BadInput
from qvl_core.training.sharding import gathered, like, local, whole

BLOCK = 256  # values that share a scale
SMALLEST = 4096  # values of a parameter; the averages of smaller ones (norms, biases) stay in fp32, as in the paper
PIECE = 2**24  # values whose averages are unpacked at a time: 128 MiB
AVERAGES = {"exp_avg": True, "exp_avg_sq": False}  # and whether they have a sign


class AdamW8bit(torch.optim.Optimizer):
    """State of a parameter: `step` () fp32 and, in the shape of this process's part of it, each average in fp32 or as
    uint8 codes, then with `<average>_scale` (blocks,) fp32 of that part laid flat."""

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], fused: bool | None, **options: Any) -> None:
        library()
        super().__init__(groups, {"fused": fused} | options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for piece in _pieces(part for p in group["params"] for part in self._parts(p)):
                self._update(group, piece)
            for parameter in group["params"]:
                self.state[parameter]["step"] += 1 if self.found_inf is None else 1 - self.found_inf

    def _parts(self, parameter: nn.Parameter) -> Iterator["_Part"]:
        """The parameter laid flat, in parts of at most PIECE values."""
        assert parameter.grad is not None
        state: dict[str, Any] = self.state[parameter]
        if not state:
            zeros = torch.zeros_like(local(parameter), memory_format=torch.contiguous_format)
            state |= {"step": torch.zeros((), device=zeros.device)}
            for key in AVERAGES:
                state |= _stored(key, zeros.clone(), parameter)
        weight, gradient = local(parameter).view(-1), local(parameter.grad).reshape(-1)
        for start in range(0, len(weight), PIECE):
            own = slice(start, start + PIECE)
            yield _Part(weight[own], gradient[own], state, own)

    def _update(self, group: dict[str, Any], piece: list["_Part"]) -> None:
        averages = {key: [part.average(key) for part in piece] for key in AVERAGES}
        adamw(
            [part.weight for part in piece],
            [part.gradient for part in piece],
            averages["exp_avg"],
            averages["exp_avg_sq"],
            [],
            [part.state["step"].clone() for part in piece],  # several parts of a parameter make one step
            fused=group["fused"],
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for key, values in averages.items():
            for part, value in zip(piece, values, strict=True):
                part.keep(key, value, self.found_inf)


class _Part(NamedTuple):
    weight: Tensor  # (n,)
    gradient: Tensor  # (n,)
    state: dict[str, Tensor]  # of the whole parameter
    own: slice  # which of its values

    def average(self, key: str) -> Tensor:
        """An average in fp32 (n,): the one that is stored, or unpacked."""
        values, scale = self._stored(key)
        return values if scale is None else unpacked(values, scale, key)

    def keep(self, key: str, value: Tensor, found_inf: Tensor | None) -> None:
        """Pack an average that was unpacked, unless the step is not applied."""
        codes, scale = self._stored(key)
        if scale is not None:
            for old, new in zip((codes, scale), packed(value, key), strict=True):
                old.copy_(new if found_inf is None else torch.where(found_inf > 0, old, new))

    def _stored(self, key: str) -> tuple[Tensor, Tensor | None]:
        scale = self.state.get(f"{key}_scale")
        blocks = slice(self.own.start // BLOCK, ceil(self.own.stop / BLOCK))
        return self.state[key].view(-1)[self.own], None if scale is None else scale[blocks]


def _pieces(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Parts that are unpacked together: one kernel for many small ones."""
    piece: list[_Part] = []
    for part in parts:
        if piece and sum(len(other.weight) for other in piece) + len(part.weight) > PIECE:
            yield piece
            piece = []
        piece.append(part)
    yield piece


def whole_state(state: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """What a checkpoint holds: codes in the shape of the whole parameter, the scales of all processes one after
    another, and in `parts` how many values each process had. Gathered (a collective call), on the CPU."""
    saved = {"step": whole(state["step"])}
    for key in AVERAGES:
        saved[key] = gathered(state[key], parameter)
        if f"{key}_scale" in state:
            saved[f"{key}_scale"] = torch.cat(_of_all(state[f"{key}_scale"].cpu(), parameter))
            saved["parts"] = torch.tensor(_of_all(state[key].numel(), parameter))
    return saved


def own_state(saved: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """The state from what `whole_state` or AdamW saved: bit-identical among as many processes as then."""
    state = {"step": saved["step"].to(parameter.device, copy=True)}
    parts = saved["parts"].tolist() if "parts" in saved else []
    if not _is_sharded_into(parts, parameter):
        saved = in_fp32(saved)
        for key in AVERAGES:
            state |= _stored(key, local(like(saved[key], parameter)), parameter)
        return state
    for key in AVERAGES:
        scale = saved[f"{key}_scale"].split(_blocks(parts))[_rank(parameter)]
        state[key] = local(like(saved[key], parameter, torch.uint8))
        state[f"{key}_scale"] = scale.to(parameter.device, copy=True)
    return state


def in_fp32(saved: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state as AdamW saves it."""
    if "parts" not in saved:
        return saved
    parts = saved["parts"].tolist()
    averages = {key: _unpacked_parts(saved[key], saved[f"{key}_scale"], parts, key) for key in AVERAGES}
    return {"step": saved["step"], **averages}


def packed(values: Tensor, key: str) -> tuple[Tensor, Tensor]:
    """Codes (n,) uint8 and scales (ceil(n / 256),) fp32 of the average `key`, (n,) fp32."""
    codes, state = library().quantize_blockwise(values, code=_codebook(key, values.device), blocksize=BLOCK)
    return codes, state.absmax


def unpacked(codes: Tensor, scale: Tensor, key: str) -> Tensor:
    """The values (n,) fp32 that `packed` was given, up to rounding."""
    book = _codebook(key, codes.device)
    return library().dequantize_blockwise(codes, absmax=scale, code=book, blocksize=BLOCK)


def library() -> Any:
    """bitsandbytes' functions. Raises BadInput where it is not installed."""
    try:
        from bitsandbytes import functional
    except ImportError:
        raise BadInput(
            "optim.name: adamw_8bit needs bitsandbytes; pip install 'qvl-core[quant]', or choose adamw."
        ) from None
    return functional


@cache
def _codebook(key: str, device: torch.device) -> Tensor:
    return library().create_dynamic_map(signed=AVERAGES[key]).to(device)


def _stored(key: str, values: Tensor, parameter: Tensor) -> dict[str, Tensor]:
    """An average, this process's part of it, as it is kept: the size of the whole parameter decides."""
    if parameter.numel() < SMALLEST:
        return {key: values}
    codes, scale = packed(values.reshape(-1), key)
    return {key: codes.view(values.shape), f"{key}_scale": scale}


def _unpacked_parts(codes: Tensor, scale: Tensor, parts: Sequence[int], key: str) -> Tensor:
    """An average in the shape of `codes`, packed by several processes in parts of so many values."""
    both = zip(codes.reshape(-1).split(list(parts)), scale.split(_blocks(parts)), strict=True)
    return torch.cat([unpacked(values, own, key) for values, own in both if len(values)]).view(codes.shape)


def _blocks(parts: Sequence[int]) -> list[int]:
    """Scales of parts of so many values."""
    return [ceil(size / BLOCK) for size in parts]


def _of_all(value: Any, parameter: Tensor) -> list[Any]:
    """The small values of all processes among which the parameter is sharded."""
    if not isinstance(parameter, DTensor):
        return [value]
    values: list[Any] = [None] * parameter.device_mesh.size()
    dist.all_gather_object(values, value, group=parameter.device_mesh.get_group())
    return values


def _is_sharded_into(parts: Sequence[int], parameter: Tensor) -> bool:
    size = parameter.device_mesh.size() if isinstance(parameter, DTensor) else 1
    return len(parts) == size and parts[_rank(parameter)] == local(parameter).numel()


def _rank(parameter: Tensor) -> int:
    return parameter.device_mesh.get_local_rank() if isinstance(parameter, DTensor) else 0
