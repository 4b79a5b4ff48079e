"""Runs in processes of their own that die at a chosen moment."""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

KILLED = -signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM


def die() -> None:
    os.kill(os.getpid(), abs(KILLED))


def child(target: Callable[..., None], *args: Any) -> int:
    """Run `target` in a process of its own and give its exit code; on Linux it imports nothing anew.

    See the root's conftest.py. A process that knows of a GPU cannot fork.
    """
    forks = sys.platform == "linux" and not torch.cuda.is_available()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    process = context.Process(target=_main, args=(target, *args))
    process.start()
    process.join()
    return int(process.exitcode)


def _main(target: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        target(*args)
