"""The processes of a run: who am I, on which device, and sums over all of us.

The environment says it (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), set by our own launcher, torchrun,
accelerate launch or srun alike. Counts and flags travel over gloo on the host, so that they never wait for a GPU.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from qvl_core.errors import BadInput, QVLError, known_to_all
from qvl_core.recipe.blocks import Parallel
from qvl_core.training.each import on_each

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""After which a process that waits for the others gives up: one of them hangs."""
PATIENCE = timedelta(days=2)
"""The same while process 0 works alone: it may read 244 GB from a slow disk. That one of them died is seen at once."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device
    strategy: str  # single, ddp, fsdp2, zero1, zero2 or zero3
    mesh: DeviceMesh | None = None  # over all processes, for fsdp2
    patient: dist.ProcessGroup | None = None  # all processes, on the host, for long waits; None: the usual group
    store: Store | None = None  # of small values, which all processes see
    _calls: Iterator[int] = field(default_factory=count, repr=False)

    def sum(self, values: Sequence[int]) -> list[int]:
        """Add up integers over all processes, on the host."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(total)
        return [int(value) for value in total]

    def reduce(self, value: Tensor) -> Tensor:
        """Add up a tensor over all processes, on its device and without waiting for it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """The small Python objects of all processes, in the order of their ranks, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.patient)
        return values

    def first(self, value: Any) -> Any:
        """Rank 0's small Python object, on every process, however long it takes to make it."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.patient)
        return values[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """Let process 0 work while the others wait; every process gets the small result.

        A QVLError there is raised on every process, so that nobody waits in vain.
        """
        result: T | None = None
        failure: QVLError | None = None
        if self.rank == 0:
            try:
                result = work()
            except QVLError as error:
                failure = error
        result, failed = self.first((result, failure))
        if failed is not None:
            raise known_to_all(failure or failed)
        return cast(T, result)

    def on_each(self, work: Callable[[], T]) -> T:
        """Let every process do its own work, however long the others take, and go on when all are done.

        A QVLError of one ends the work of all soon, and is raised on every process; the first one tells it.
        """
        if self.size == 1:
            return work()
        assert self.store is not None
        result = on_each(work, PrefixStore(f"on_each {next(self._calls)}", self.store), self.rank, self.size)
        self.gather(None)  # process 0 keeps the store: it must not leave before all have seen that all are done
        return result

    def barrier(self) -> None:
        self.sum([0])


@contextmanager
def processes(parallel: Parallel) -> Iterator[World]:
    """Join the run's processes and leave them at the end. The number that was asked for is asserted."""
    rank, size, local = (int(os.environ.get(name, fallback)) for name, fallback in _ENVIRONMENT)
    _assert_size(parallel, size)
    strategy = ("ddp" if size > 1 else "single") if parallel.strategy == "auto" else parallel.strategy
    if strategy == "single" and size > 1:
        raise BadInput(f"parallel.strategy is single but {size} processes were started; use ddp or fsdp2.")
    if strategy.startswith("zero") and size == 1:
        raise BadInput(f"parallel.strategy: {strategy} shares a run among processes and there is one; use single.")
    device = _device(local)
    if strategy == "single":
        yield World(rank, size, device, strategy)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, **_rendezvous(rank, size), timeout=TIMEOUT)
    try:
        patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))
        mesh = init_device_mesh(device.type, (size,)) if strategy == "fsdp2" else None
        yield World(rank, size, device, strategy, mesh, patient, _get_default_store())
    finally:
        dist.destroy_process_group()


_ENVIRONMENT = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _rendezvous(rank: int, size: int) -> dict[str, Any]:
    """A lone process needs no address: it meets itself in memory."""
    if "MASTER_ADDR" in os.environ:
        return {}
    store = dist.HashStore()  # type: ignore[attr-defined]
    return {"store": store, "rank": rank, "world_size": size}


def _assert_size(parallel: Parallel, size: int) -> None:
    if parallel.nproc is None and parallel.nodes is None:
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    nproc, nodes = parallel.nproc or local, parallel.nodes or max(1, size // local)
    if size != nproc * nodes:
        raise BadInput(
            f"parallel: {nproc} processes on each of {nodes} nodes were asked for but {size} were started; "
            f"start with --nproc {nproc} or torchrun --nnodes {nodes} --nproc-per-node {nproc}."
        )


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise BadInput(
            f"LOCAL_RANK is {local_rank} but this machine has {torch.cuda.device_count()} GPUs; start fewer processes."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
