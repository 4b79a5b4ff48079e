"""Starts the processes of a run on one machine: `qvl-sft train R --nproc 2`, without torchrun, a shell or fork.

Each child is this interpreter with the same arguments and the variables that torch.distributed reads. Signals go to
all children; when one fails the others are ended, because they would wait for it in their next collective.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from qvl_core.errors import Preempted

PREEMPTED = Preempted.exit_code
FORWARDED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
LIFELINE = "QVL_LIFELINE"  # set in children: their standard input is a pipe that the launcher holds open


def launched() -> bool:
    """Whether a launcher (this one, torchrun, accelerate launch, our SLURM script) has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(argv: Sequence[str], nproc: int, grace: float = 10.0) -> int:
    """Run `python *argv` in `nproc` processes and return the exit code of the run.

    That is the code of the first process that failed, else 75 if the run was preempted, else 0. Processes that are
    left over after a failure get `grace` seconds to end by themselves, and as long again after SIGTERM.
    """
    port = free_port()
    # A session of its own: Ctrl-C in a terminal then reaches each child once, through us. Windows needs a group for
    # Ctrl-Break, the only signal that it can send.
    if sys.platform == "win32":
        apart: dict[str, int] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        apart = {"start_new_session": True}
    children: list[subprocess.Popen[bytes]] = []
    with forwarding(children):
        for rank in range(nproc):
            call = [sys.executable, *argv]
            env = environment(os.environ, rank, nproc, port)
            children.append(subprocess.Popen(call, env=env, stdin=subprocess.PIPE, **apart))  # type: ignore[call-overload]
        return _wait(children, grace)


def environment(given: Mapping[str, str], rank: int, nproc: int, port: int) -> dict[str, str]:
    """The environment of process `rank` of `nproc` on one machine."""
    threads = {} if nproc == 1 else {"OMP_NUM_THREADS": "1"}  # else every process would take all cores
    return {
        **threads,
        **given,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LIFELINE: "1",
    }


def free_port() -> int:
    """A TCP port that nothing on this machine listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_with_launcher() -> None:
    """In a child: end when the launcher is gone, even by kill -9, so that nothing goes on writing into the run."""
    if LIFELINE not in os.environ:
        return
    del os.environ[LIFELINE]  # not inherited by this process's own children

    def watch() -> None:
        while os.read(0, 1):  # nothing is ever written: it returns when the pipe is closed
            pass
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


@contextmanager
def forwarding(children: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Pass signals on to the children instead of dying of them."""

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            _send(child, number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(child: "subprocess.Popen[bytes]", number: int) -> None:
    if child.poll() is None:
        child.send_signal(getattr(signal, "CTRL_BREAK_EVENT", number))  # Windows has only that one


def _wait(children: list["subprocess.Popen[bytes]"], grace: float) -> int:
    """Wait for all children; a failure of one puts an end to the others."""
    failed: int | None = None
    deadline = float("inf")
    ends = [_terminate, _kill]
    running = list(children)
    while running:
        for child in list(running):
            code = child.poll()
            if code is None:
                continue
            running.remove(child)
            if code not in (0, PREEMPTED) and failed is None:
                failed, deadline = code, time.monotonic() + grace
        if time.monotonic() > deadline and ends:
            end, deadline = ends.pop(0), time.monotonic() + grace
            for child in running:
                end(child)
        time.sleep(0.05)
    if failed is not None:
        return 128 - failed if failed < 0 else failed  # killed by a signal, as shells say it
    return PREEMPTED if any(child.returncode == PREEMPTED for child in children) else 0


def _terminate(child: "subprocess.Popen[bytes]") -> None:
    _send(child, signal.SIGTERM)


def _kill(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
