"""Micro-batches ahead of the step: planned in the main process, read and encoded in spawned workers.

A step's batches are a pure function of (seed, step), so workers hold no state and any number of them gives the same
run.
"""

import pickle
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from qvl_core.errors import QVLError
from qvl_core.training.parts import Batches, Micro
from qvl_core.training.world import World

GPU_WORKERS = 4  # by default: decoding and encoding keep up with a GPU, beside which a CPU step needs its cores itself


def shares(batches: Batches, first: int, steps: int, world: World, workers: int | None) -> Generator[list[Micro]]:
    """This process's micro-batches of each step from `first` to the last one, in pinned memory where there is a GPU."""
    plans = (batches.plan(step, world.rank, world.size) for step in range(first, steps))
    cuda = world.device.type == "cuda"
    if workers is None:
        workers = GPU_WORKERS if cuda else 0
    if workers == 0:
        for plan in plans:
            share = batches.build(plan)
            yield [micro.pin_memory() for micro in share] if cuda else share
        return
    built = DataLoader(
        _Built(batches),
        sampler=plans,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_quiet,
        prefetch_factor=2,
        pin_memory=cuda,
    )
    with _held_signals():
        started = iter(built)
    for share in started:
        if isinstance(share, QVLError):
            raise share
        yield share


class _Built(Dataset[list[Micro] | QVLError]):
    """A map from plans to micro-batches, as DataLoader wants it. Errors for people travel as values, not tracebacks."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getstate__(self) -> tuple[list[str], bytes]:
        return _plugins(), pickle.dumps(self.batches)

    def __setstate__(self, state: tuple[list[str], bytes]) -> None:
        """In a worker: run the user's plugins, then unpickle what may need them."""
        from qvl_core.cli.plugin import execute

        plugins, batches = state
        for file in plugins:
            execute(file)
        self.batches = pickle.loads(batches)

    def __getitem__(self, plan: Any) -> list[Micro] | QVLError:
        try:
            return self.batches.build(plan)
        except QVLError as error:
            return error


def _plugins() -> list[str]:
    """The files that --plugin has named, in their order."""
    return [str(module.__file__) for name, module in sys.modules.items() if name.startswith("qvl_plugin_")]


@contextmanager
def _held_signals() -> Iterator[None]:
    """Start workers deaf: one that dies of the cluster's SIGTERM while it loads would leave this process waiting.

    Signals that come meanwhile are heard here afterwards. (Windows cannot hold them, nor does it send them to groups.)
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quiet(worker: int) -> None:
    """Leave signals to the main process: it saves, and takes its workers down at the end. One thread is enough."""
    torch.set_num_threads(1)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
