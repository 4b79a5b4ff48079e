"""Whatever kills the real thing, the same command ends with the same bits.

A tiny Qwen3-VL on digits in Parquet, every picture shifted, LoRA with dropout and the merger in full, packed rows in
micro-batches; `kill -9` after steps and in the middle of saves.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command import files, qvl_sft, watched

from qvl_core.qwen3vl.tiny import tiny
from qvl_core.run import RunFolder
from qvl_core.training import checkpoint
from qvl_core.training.parts import Callbacks

STEPS = 8
SAVES = 4  # one every second step
FILES = 4  # of a checkpoint: weights, optimizer, state, manifest


RECIPE = """
version: 1
model: {{name: {place}/base}}
tune:
  llm:    {{mode: lora, rank: 4, alpha: 8, dropout: 0.1}}
  merger: {{mode: full}}
data: {{train: {{source: {data}/digits, shift: 4}}}}
batch: {{tokens: 512, max_length: 128, micro: 2}}
optim: {{lr: 3e-3}}
train: {{steps: 8}}
checkpoint: {{every: 2, keep: 9}}
log: {{every: 2}}
"""
KILLED = -signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM


def die() -> None:
    os.kill(os.getpid(), abs(KILLED))


def killed_after(out: Path, step: int, workers: int = 0) -> None:
    with watched(Callbacks(on_step=lambda done: die() if done == step else None)):
        finish(out, workers)


def killed_in_save(out: Path, save: int, file: int, workers: int = 0) -> None:
    """Die after the `file`-th file of the checkpoint of step 2 * `save`."""
    seen: list[Path] = []

    def written(path: Path) -> None:
        if path.parent.name == f".step-{2 * save:06d}.partial":
            seen.append(path)
            if len(seen) == file:
                die()

    checkpoint._written = written
    finish(out, workers)


def killed_in_export(out: Path, when: str) -> None:
    """Die before or after final/ gets its name."""
    rename = Path.rename

    def renamed(self: Path, target: Any) -> Any:
        if self.name == ".final.partial" and when == "before":
            die()
        result = rename(self, target)
        if self.name == ".final.partial":
            die()
        return result

    Path.rename = renamed  # type: ignore[assignment, method-assign]
    finish(out)


def finish(out: Path, workers: int = 0) -> None:
    """The command, uninterrupted."""
    done = qvl_sft("train", str(out.parent / "recipe.yaml"), f"data.workers={workers}", "--out", str(out))
    if done.code:
        sys.exit(done.err)


def child(target: Callable[..., None], *args: Any) -> int:
    """Run `target` in a process of its own, on Linux without importing torch anew, and give its exit code."""
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(
            ["qvl_sft.build", "qvl_core.training.conduct", "torch._dynamo", "peft", "pytest"]
        )
    process = context.Process(target=_main, args=(target, *args))
    process.start()
    process.join()
    return int(process.exitcode)


def _main(target: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        target(*args)


@pytest.fixture(scope="module")
def place(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml, base/ and the uninterrupted run whole/."""
    folder = tmp_path_factory.mktemp("kill")
    recipe = RECIPE.format(place=folder.as_posix(), data=data.as_posix())
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    tiny(folder / "base")
    assert child(finish, folder / "whole") == 0
    return folder


def same(run: Path, whole: Path) -> None:
    """Bit-identical final weights, optimizer state and logged figures; nothing is left over."""
    for file in ("final/adapter_model.safetensors", "final/adapter_config.json"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    for step in range(2, STEPS + 1, 2):
        for kind in ("weights", "optimizer"):
            file = f"checkpoints/step-{step:06d}/{kind}-00000.safetensors"
            assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    assert curve(run) == curve(whole)
    assert files(run) == files(whole)


def curve(run: Path) -> list[tuple[float, ...]]:
    records = [record for record in RunFolder(run).read_metrics() if "loss" in record]
    return [tuple(record[name] for name in ("step", "loss", "lr", "grad_norm")) for record in records]


def test_one_run_killed_again_and_again(place: Path) -> None:
    """Kills at steps 1, 3, 6 and 8, and in all four saves, each at another file; resumed with and without workers."""
    run = place / "chain"
    chain: Sequence[tuple[Callable[..., None], tuple[Any, ...], int]] = [
        (killed_after, (1,), 0),
        (killed_in_save, (1, 1), 0),
        (killed_after, (3,), 2),
        (killed_in_save, (2, 2, 2), 2),
        (killed_in_save, (3, 3), 4),
        (killed_after, (6,), 4),
        (killed_in_save, (4, 4), 6),
        (killed_after, (8,), 6),
        (killed_in_export, ("before",), 8),
        (killed_in_export, ("after",), 8),
    ]
    for kill, where, saved in chain:
        assert child(kill, run, *where) == KILLED
        assert RunFolder(run).read_result() is None
        found, skipped = checkpoint.newest(run / "checkpoints")
        assert (found.step if found else 0, skipped) == (saved, []), (kill.__name__, where)
    assert child(finish, run) == 0
    same(run, place / "whole")
    result = RunFolder(run).read_result()
    assert result is not None
    assert (result["complete"], result["steps"]) == (True, STEPS)


def points() -> Iterator[tuple[Callable[..., None], tuple[int, ...]]]:
    yield from ((killed_after, (step,)) for step in range(1, STEPS + 1))
    yield from ((killed_in_save, (save, file)) for save in range(1, SAVES + 1) for file in range(1, FILES + 1))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_every_step_and_in_every_file_of_every_save(workers: int, place: Path, tmp_path: Path) -> None:
    for number, (kill, where) in enumerate(points()):
        run = place / f"sweep-{workers}-{number}"
        assert child(kill, run, *where, workers) == KILLED, where
        assert child(finish, run, workers) == 0, where
        same(run, place / "whole")
