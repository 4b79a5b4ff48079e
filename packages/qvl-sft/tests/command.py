"""The command line in this process, and data small enough to learn from in seconds."""

import contextlib
import importlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from qvl_core.training.parts import Callbacks, Parts
from qvl_data.convert import write_samples
from qvl_data.example.digits import SPLITS, digits_dataset

# The recipe `tiny` in a third of its steps.
QUICK = ["train.steps=80", "optim.lr=3e-3", "evaluate.every=40", "checkpoint.every=40", "evaluate.samples=32"]


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def qvl_sft(*args: str) -> Done:
    """Run `qvl-sft *args` in this process."""
    from qvl_sft.cli import app

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = app.run(list(args))
    return Done(code, out.getvalue(), err.getvalue())


def write_digits(folder: Path) -> Path:
    """The dataset folders folder/digits and folder/parity."""
    for name, kind in (("digits", "digit"), ("parity", "parity")):
        for split in SPLITS:
            write_samples(digits_dataset(kind, split), folder / name / f"{split}.parquet")
    return folder


def files(folder: Path) -> list[str]:
    """All files below a folder, by their path in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def watched(*callbacks: Callbacks) -> Iterator[None]:
    """While it lasts, runs have these callbacks."""
    room = importlib.import_module("qvl_sft.build")
    build = room.build

    def with_callbacks(*args: Any, **options: Any) -> Parts:
        return replace(build(*args, **options), callbacks=callbacks)

    room.build = with_callbacks  # type: ignore[attr-defined]
    try:
        yield
    finally:
        room.build = build  # type: ignore[attr-defined]
