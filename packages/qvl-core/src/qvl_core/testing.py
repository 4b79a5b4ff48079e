"""For the tests of every package: a process that dies at one of its file operations, as of `kill -9` or a power cut.

with operations() as done:                  # names, in the order of the calls
    write(folder)
with operations(die_at=len(done)):          # the last one is never done
    write(folder)

And what autograd keeps of a forward: `kept(model, lambda: loss(model, batch))`.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

OPERATIONS = ("replace", "rename", "fsync", "unlink", "truncate", "mkdir")
"""Functions of `os` that change or sync files."""


def die() -> None:
    """What no process can catch; on Windows SIGTERM is just as final."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


@contextmanager
def operations(die_at: int = 0, names: Sequence[str] = OPERATIONS) -> Iterator[list[str]]:
    """Which of `names` this process calls; before the call of number `die_at` (from 1; 0: never) it dies."""
    done: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            done.append(name)
            if len(done) == die_at:
                die()
            return real(*given, **named)

        return call

    real = {name: getattr(os, name) for name in names}
    try:
        for name, function in real.items():
            setattr(os, name, counted(name, function))
        yield done
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def kept(model: "nn.Module", forward: "Callable[[], Tensor]") -> int:
    """Bytes of the storages that autograd keeps of a forward, weights left out; a backward of its loss follows."""
    import torch

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive: dict[int, Tensor] = {}

    def keep(tensor: "Tensor") -> "Tensor":
        alive.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    found = sum(t.untyped_storage().nbytes() for address, t in alive.items() if address not in weights)
    loss.backward()
    return found
