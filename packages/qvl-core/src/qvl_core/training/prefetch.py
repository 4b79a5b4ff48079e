"""Micro-batches ahead of the step: planned in the main process, read and encoded in spawned workers.

A step's batches are a pure function of (seed, step), so workers hold no state and any number of them gives the same
run.
"""

import signal
from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from qvl_core.errors import QVLError
from qvl_core.training.parts import Batches, Micro
from qvl_core.training.world import World


def shares(batches: Batches, first: int, steps: int, world: World, workers: int) -> Generator[list[Micro]]:
    """This process's micro-batches of each step from `first` to the last one."""
    plans = (batches.plan(step, world.rank, world.size) for step in range(first, steps))
    if workers == 0:
        yield from (batches.build(plan) for plan in plans)
        return
    built = DataLoader(
        _Built(batches),
        sampler=plans,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_quiet,
        prefetch_factor=2,
        pin_memory=world.device.type == "cuda",
    )
    for share in built:
        if isinstance(share, QVLError):
            raise share
        yield share


class _Built(Dataset[list[Micro] | QVLError]):
    """A map from plans to micro-batches, as DataLoader wants it. Errors for people travel as values, not tracebacks."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, plan: Any) -> list[Micro] | QVLError:
        try:
            return self.batches.build(plan)
        except QVLError as error:
            return error


def _quiet(worker: int) -> None:
    """Leave signals to the main process: it saves, and takes its workers down at the end. One thread is enough."""
    torch.set_num_threads(1)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
