"""An arm's side of an interleaved measurement: one training step at a time, when the benchmark says so.

The benchmark writes a line to let a step begin; the arm answers with a line of JSON when it has ended. A step is all
that lies between the ends of two optimizer steps: fetching and collating a batch, forward, backward, clipping, update,
and whatever else the trainer does. Time is the CPU time of the process, so a busy machine and waiting count little.
"""

import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "trl", "qvl-core")


class Stop(Exception):
    """The benchmark has seen enough steps."""


class Gate:
    """Lines over standard input and output; what else is printed goes to standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._start = 0.0

    def ready(self) -> None:
        """Set up; say with what, and wait for the first step."""
        self._answer({"versions": dict(filter(None, map(_version, PACKAGES)))})
        self._wait()

    def step_ended(self, loss: float) -> None:
        """`loss`: mean over the labels of the step that just ended."""
        self._answer({"cpu_seconds": time.process_time() - self._start, "loss": loss})
        self._wait()

    def _answer(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), file=self._answers, flush=True)

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise Stop
        self._start = time.process_time()


def _version(package: str) -> tuple[str, str] | None:
    try:
        return package, version(package)
    except PackageNotFoundError:
        return None
