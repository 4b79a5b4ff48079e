"""Whatever kills the real thing, the same command ends with the same bits.

A tiny Qwen3-VL on digits in Parquet, every picture cropped, shifted and brightened, LoRA with dropout and the merger in
full, packed rows in micro-batches; `kill -9` after steps and in the middle of saves.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from command import files, qvl_sft, watched
from killing import KILLED, child, die

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
data: {{train: {{source: {data}/digits, take: 200, augment: {{crop: 0.7, shift: 4, brightness: 0.3}}}}}}
batch: {{tokens: 512, max_length: 128, micro: 2}}
optim: {{lr: 3e-3}}
train: {{steps: 8}}
checkpoint: {{every: 2, keep: 9}}
log: {{every: 2}}
"""


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


Kill = tuple[Callable[..., None], tuple[int, ...]]  # what to run, and where it dies


def every_point(save: int) -> list[Kill]:
    """The two steps before a save, and each file of it."""
    steps: list[Kill] = [(killed_after, (2 * save - 1,)), (killed_after, (2 * save,))]
    return [*steps, *((killed_in_save, (save, file)) for file in range(1, FILES + 1))]


SOME: list[Kill] = [
    (killed_after, (1,)), (killed_in_save, (1, 1)), (killed_after, (3,)), (killed_in_save, (2, 2)),
    (killed_in_save, (3, 3)), (killed_after, (6,)), (killed_after, (8,)), (killed_in_save, (4, 4)),
]  # fmt: skip


def killed_and_continued(run: Path, kills: Sequence[Kill], workers: Sequence[int]) -> None:
    """One run that dies at each point, continued each time by the same command, with so many workers in turn."""
    number = cycle(workers)
    for kill, where in kills:
        assert child(kill, run, *where, next(number)) == KILLED, (kill.__name__, where)
        assert RunFolder(run).read_result() is None
        found, skipped = checkpoint.newest(run / "checkpoints")
        at_step = where[0] if kill is killed_after else 2 * where[0]
        assert (found.step if found else 0, skipped) == ((at_step - 1) // 2 * 2, []), (kill.__name__, where)
    for when in ("before", "after"):
        assert child(killed_in_export, run, when) == KILLED
    assert child(finish, run, next(number)) == 0
    result = RunFolder(run).read_result()
    assert result is not None
    assert (result["complete"], result["steps"]) == (True, STEPS)


def test_killed_again_and_again(place: Path) -> None:
    """At four steps and in all four saves, each at another file; once with two workers."""
    killed_and_continued(place / "some", SOME, [0] * 4 + [2] + [0] * 4)
    same(place / "some", place / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("save", range(1, SAVES + 1))
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_every_step_and_in_every_file_of_every_save(workers: int, save: int, place: Path) -> None:
    run = place / f"all-{workers}-{save}"
    killed_and_continued(run, every_point(save), [workers])
    same(run, place / "whole")
