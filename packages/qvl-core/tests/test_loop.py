"""The loop's promises, on a toy run: what a kill, a damaged file, a full disk or a NaN may cost, and what not."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from harness import child, die, die_after, toy_run
from safetensors.torch import load_file
from toy import STEPS, LoudBatches, ToyBatches, network, toy_loss, toy_parts, toy_recipe

from qvl_core.errors import BadInput, Preempted, QVLError
from qvl_core.run import RunFolder
from qvl_core.training import checkpoint
from qvl_core.training.parts import Callbacks

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    toy_run(out)
    return out


def same(out: Path, reference: Path) -> None:
    """Bit-identical weights, optimizer and log."""
    assert (out / "final/model.safetensors").read_bytes() == (reference / "final/model.safetensors").read_bytes()
    last = f"checkpoints/step-{STEPS:06d}"
    for file in ("weights-00000.safetensors", "optimizer-00000.safetensors"):
        assert (out / last / file).read_bytes() == (reference / last / file).read_bytes()
    assert log_steps(out) == log_steps(reference)


def log_steps(out: Path) -> list[tuple[Any, ...]]:
    """What the log says of the training steps, without times."""
    records = [record for record in RunFolder(out).read_metrics() if "event" not in record]
    return [tuple(record[name] for name in ("step", "loss", "error", "lr", "grad_norm")) for record in records]


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in RunFolder(out).read_metrics() if record.get("event") == kind]


def test_the_log_has_every_log_step_once(whole: Path) -> None:
    assert [entry[0] for entry in log_steps(whole)] == [2, 4, 6, 8]
    assert [record["step"] for record in events(whole, "checkpoint")] == [2, 4, 6, 8]


def test_the_same_seed_repeats_the_run_and_another_does_not(whole: Path, tmp_path: Path) -> None:
    toy_run(tmp_path / "again")
    same(tmp_path / "again", whole)
    toy_run(tmp_path / "other", recipe=toy_recipe(train={"steps": STEPS, "seed": 4}))  # dropout differs
    assert log_steps(tmp_path / "other") != log_steps(whole)


# Kills


def killed_after(out: Path, step: int, workers: int = 0) -> None:
    recipe = toy_recipe(data={"train": "none", "workers": workers})
    toy_run(out, replace(toy_parts(network()), callbacks=[die_after(step)]), recipe)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_after_a_step(step: int, whole: Path, tmp_path: Path) -> None:
    assert child(killed_after, tmp_path / "run", step) != 0
    assert not (tmp_path / "run/final").exists()
    toy_run(tmp_path / "run")
    same(tmp_path / "run", whole)


def killed_before_file_operation(out: Path, number: int) -> None:
    """Die at the `number`-th change to the run folder: a file opened or renamed, a folder made or removed."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            die()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (changes or writes) and str(out) in str(arguments[0]):
            count()

    checkpoint._written = lambda path: count()  # safetensors writes its files unheard
    sys.addaudithook(hook)
    toy_run(out)
    (out.parent / "operations").write_text(str(seen), encoding="utf-8")


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a whole run changes its folder."""
    folder = tmp_path_factory.mktemp("operations")
    assert child(killed_before_file_operation, folder / "run", 0) == 0
    return int((folder / "operations").read_text(encoding="utf-8"))


def sweep(points: Iterator[int] | range, whole: Path, tmp_path: Path) -> None:
    for number in points:
        out = tmp_path / str(number)
        assert child(killed_before_file_operation, out, number) != 0, number
        toy_run(out)
        same(out, whole)
        assert not [path for path in out.rglob(".*") if ".tmp" not in path.name], number
        shutil.rmtree(out)


def test_killed_while_writing(operations: int, whole: Path, tmp_path: Path) -> None:
    sweep(range(3, operations, 7), whole, tmp_path)


@pytest.mark.slow
def test_killed_before_every_single_file_operation(operations: int, whole: Path, tmp_path: Path) -> None:
    sweep(range(1, operations + 1), whole, tmp_path)


def stalled_in_save(out: Path, save: int, file: int) -> None:
    """Hang after the `file`-th file of the `save`-th save, until someone kills."""
    seen = 0

    def stall(path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == 4 * (save - 1) + file:
            (out / "stalled").touch()
            time.sleep(600)

    checkpoint._written = stall
    toy_run(out)


@POSIX
@pytest.mark.parametrize(("save", "file"), [(1, 1), (2, 2), (3, 3), (4, 4)])
def test_killed_from_outside_in_the_middle_of_a_save(save: int, file: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert child(_kill_when_stalled, out, save, file) == 0
    assert [path.name for path in (out / "checkpoints").glob("*") if path.name.endswith(".partial")]
    (out / "stalled").unlink()
    toy_run(out)
    same(out, whole)


def _kill_when_stalled(out: Path, save: int, file: int) -> None:
    pid = os.fork()
    if pid == 0:
        stalled_in_save(out, save, file)
    while not (out / "stalled").exists():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the child ended before it stalled"
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def preempted_with_workers(out: Path) -> None:
    """SIGTERM to the whole process group, as a cluster sends it; the workers leave it to the main process."""
    os.setpgrp()
    recipe = toy_recipe(data={"train": "none", "workers": 2})
    stop = Callbacks(on_step=lambda step: os.killpg(0, signal.SIGTERM) if step == 3 else None)
    toy_run(out, replace(toy_parts(network()), callbacks=[stop]), recipe)


def preempted_while_workers_start(out: Path) -> None:
    os.setpgrp()
    toy_run(out, toy_parts(network(), LoudBatches(seed=3)), toy_recipe(data={"train": "none", "workers": 2}))


@POSIX
def test_asked_to_stop_while_workers_start(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert child(preempted_while_workers_start, out) == 75
    toy_run(out)
    assert (out / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()


def note_workers_and_die(out: Path) -> None:
    def on_step(step: int) -> None:
        if step == 6:
            pids = [process.pid for process in psutil.Process().children(recursive=True)]
            (out / "workers").write_text(json.dumps(pids), encoding="utf-8")
            die()

    recipe = toy_recipe(data={"train": "none", "workers": 2})
    toy_run(out, replace(toy_parts(network()), callbacks=[Callbacks(on_step=on_step)]), recipe)


@POSIX
def test_workers_change_nothing_and_die_with_their_parent(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert child(preempted_with_workers, out) == 75
    assert (out / "checkpoints/step-000003").is_dir()
    assert child(note_workers_and_die, out) == -signal.SIGKILL
    orphans = json.loads((out / "workers").read_text(encoding="utf-8"))
    assert len(orphans) >= 2
    toy_run(out)  # and without any
    assert (out / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in orphans if psutil.pid_exists(pid)], timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_after_every_step_with_workers(step: int, whole: Path, tmp_path: Path) -> None:
    assert child(killed_after, tmp_path / "run", step, 2) != 0
    toy_run(tmp_path / "run", recipe=toy_recipe(data={"train": "none", "workers": 2}))
    same(tmp_path / "run", whole)


# Damaged files


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after step 6, with checkpoints of steps 4 and 6."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Preempted):
        toy_run(out, replace(toy_parts(network()), callbacks=[raising(signal.SIGTERM, 6)]))
    return out


def raising(number: int, at: int) -> Callbacks:
    return Callbacks(on_step=lambda step: signal.raise_signal(number) if step == at else None)


def truncated(size: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, size(file.stat().st_size))


def flipped(place: float, bit: int) -> Callable[[Path], None]:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1 << bit
        file.write_bytes(content)

    return flip


DAMAGES: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "empty": truncated(lambda size: 0),
    "half": truncated(lambda size: size // 2),
    "last byte missing": truncated(lambda size: size - 1),
    **{f"bit {bit} at {place}": flipped(place, bit) for place, bit in [(0, 0), (0.1, 7), (0.5, 3), (0.9, 6), (1, 1)]},
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["weights-00000.safetensors", "optimizer-00000.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    name: str, damage: str, interrupted: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    DAMAGES[damage](out / "checkpoints/step-000006" / name)
    toy_run(out)
    same(out, whole)
    (skipped,) = events(out, "checkpoint_skipped")
    assert f"step-000006/{name}".replace("/", os.sep) in skipped["reason"]
    (resumed,) = events(out, "resume")
    assert resumed["checkpoint"].endswith("step-000004")


def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(interrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    (out / "checkpoints/step-000006/state.json").unlink()
    with pytest.raises(Preempted):
        toy_run(out, replace(toy_parts(network()), callbacks=[raising(signal.SIGTERM, 5)]))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000004", "step-000005"]


def test_nothing_is_restarted_in_silence_when_all_checkpoints_are_damaged(interrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    for path in (out / "checkpoints").iterdir():
        os.truncate(path / "optimizer-00000.safetensors", 100)
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(QVLError, match=r"no checkpoint is whole .*step-000006.*step-000004.*--fresh") as error:
        toy_run(out)
    assert error.value.exit_code == 1
    assert (out / "metrics.jsonl").read_bytes() == before


# Memory


@pytest.mark.parametrize("advice", [None, lambda: "set batch.micro: 1 (3.0 GiB)"])
def test_too_little_memory(advice: Callable[[], str] | None, tmp_path: Path) -> None:
    """One sentence with the knobs; what was saved before stays, and the same command goes on from it."""

    def full(model: Any, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 9:  # of step 5, in two micro-batches
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 TiB")
        return toy_loss(model, batch)

    steps = 0
    words = (
        "batch.micro: 1 \\(3.0 GiB\\), and run"
        if advice
        else "train.recompute: true, lower batch.micro.*fsdp2, and run"
    )
    with pytest.raises(QVLError, match=f"step 5: the device's memory is full; set {words} the same command") as error:
        toy_run(tmp_path / "run", toy_parts(network(), loss=full, advice=advice))
    assert error.value.exit_code == 1
    toy_run(tmp_path / "run")
    (resumed,) = events(tmp_path / "run", "resume")
    assert resumed["checkpoint"].endswith("step-000004")


# Non-finite losses


def test_a_nan_is_not_applied_and_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = toy_run(out, toy_parts(network(), ToyBatches(seed=3, nan_steps=(4,))))
    (event,) = events(out, "nonfinite")
    assert event["step"] == 5
    assert event["samples"] == [f"4/{slot}" for slot in range(8)]
    assert outcome.progress.skipped == 1
    weights = load_file(out / "final/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert next(record for record in RunFolder(out).read_metrics() if record["step"] == 6)["nonfinite"] == 1


def test_lasting_nans_stop_the_run_and_are_never_saved(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = toy_recipe(train={"steps": STEPS, "seed": 3, "max_nonfinite": 3})
    batches = ToyBatches(seed=3, nan_steps=(4, 5, 6, 7))
    for _ in range(2):  # the same command meets the same NaNs
        with pytest.raises(QVLError, match="3 steps in a row, up to step 7") as error:
            toy_run(out, toy_parts(network(), batches), recipe)
        assert error.value.exit_code == 1
        found, skipped = checkpoint.newest(out / "checkpoints")
        assert found is not None
        assert not skipped
        assert found.step == 6  # saved after two of them: not one was applied, so it equals step 4
        assert all(tensor.isfinite().all() for tensor in (found.weights() | found.optimizer()).values())
        before = checkpoint.read(out / "checkpoints/step-000004")
        for now, then in [(found.weights(), before.weights()), (found.optimizer(), before.optimizer())]:
            assert all(torch.equal(now[name], then[name]) for name in then)


# Signals


@pytest.mark.parametrize(("name", "step"), [("SIGTERM", 1), ("SIGUSR1", 4), ("SIGTERM", 7), ("SIGINT", 7)])
def test_asked_to_stop_no_step_is_lost(name: str, step: int, whole: Path, tmp_path: Path) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"no {name} here")
    out, before = tmp_path / "run", signal.getsignal(getattr(signal, name))
    with pytest.raises(Preempted, match=f"after step {step};") as error:
        toy_run(out, replace(toy_parts(network()), callbacks=[raising(getattr(signal, name), step)]))
    assert error.value.exit_code == 75
    assert signal.getsignal(getattr(signal, name)) == before
    assert checkpoint.read(out / f"checkpoints/step-{step:06d}").step == step
    done: list[int] = []
    toy_run(out, replace(toy_parts(network()), callbacks=[Callbacks(on_step=done.append)]))
    assert done == list(range(step + 1, STEPS + 1))
    assert (out / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    steps = [entry[0] for entry in log_steps(out)]
    assert steps == sorted({2, 4, 6, 8, step})


def interrupted_in(call: int, number: int) -> Callable[..., dict[str, float]]:
    """The usual evaluation; in the `call`-th one a signal comes, and nothing after it may be reached."""
    usual, calls = toy_parts(network()).evaluate, [0]
    assert usual is not None

    def evaluate(model: Any, world: Any, final: bool) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(number)
            pytest.fail("the evaluation went on")
        return usual(model, world, final)

    return evaluate


@POSIX
@pytest.mark.parametrize(
    ("name", "call", "step"), [("SIGTERM", 1, 4), ("SIGTERM", 2, 8), ("SIGUSR1", 1, 4), ("SIGINT", 2, 8)]
)
def test_an_evaluation_is_cut_short_and_made_up(name: str, call: int, step: int, whole: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", toy_recipe(evaluate={"every": 4}, checkpoint={"every": 3})
    evaluate = interrupted_in(call, getattr(signal, name))
    with pytest.raises(Preempted, match=f"after step {step};"):
        toy_run(out, toy_parts(network(), evaluate=evaluate), recipe)
    assert checkpoint.newest(out / "checkpoints")[0].step == step  # type: ignore[union-attr]
    toy_run(out, recipe=recipe)
    assert (out / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    assert [record["step"] for record in events(out, "evaluation")] == [4, 8]


def test_asked_to_stop_while_exporting_or_showing(whole: Path, tmp_path: Path) -> None:
    out, usual = tmp_path / "run", toy_parts(network())

    def export(folder: Path, weights: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        usual.export(folder, weights)  # type: ignore[misc]

    def preview(model: Any, folder: Path, step: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the preview went on")

    for given in (replace(usual, export=export), toy_parts(network(), preview=preview)):
        with pytest.raises(Preempted, match="after step 8;"):
            toy_run(out, given)
        assert (out / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    toy_run(out)
    same(out, whole)
    assert len(events(out, "evaluation")) == 1


@pytest.mark.parametrize(("every", "steps"), [(None, [4, 8]), (3, [3, 6, 8])])
def test_pictures_are_shown_with_evaluations_or_at_steps_of_their_own(
    every: int | None, steps: list[int], whole: Path, tmp_path: Path
) -> None:
    shown = []
    parts = toy_parts(network(), preview=lambda model, folder, step: shown.append(step), preview_every=every)
    toy_run(tmp_path / "run", parts, toy_recipe(evaluate={"every": 4}))
    assert shown == steps
    assert (tmp_path / "run/final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "error", [QVLError("the store is damaged; write it again."), torch.OutOfMemoryError("CUDA out of memory.\nTried")]
)
def test_pictures_that_cannot_be_drawn_end_nothing(
    error: Exception, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def preview(model: Any, folder: Path, step: int) -> None:
        raise error

    toy_run(tmp_path / "run", toy_parts(network(), preview=preview))
    same(tmp_path / "run", whole)
    said = "the device's memory is full" if isinstance(error, torch.OutOfMemoryError) else "the store is damaged"
    assert f"step 8: no pictures: {said}" in caplog.text


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def press(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "run", toy_parts(network(), callbacks=[Callbacks(on_step=press)]))
    assert signal.getsignal(signal.SIGINT) == before


def killed_after_the_final_evaluation(out: Path) -> None:
    callbacks = [Callbacks(on_evaluate=lambda step, figures: die() if step == STEPS else None)]
    toy_run(out, toy_parts(network(), callbacks=callbacks))


def test_a_final_evaluation_that_is_made_again_is_recorded_once(whole: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert child(killed_after_the_final_evaluation, tmp_path / "run") != 0
    toy_run(tmp_path / "run")
    same(tmp_path / "run", whole)
    assert len(events(tmp_path / "run", "evaluation")) == 1


# Full disks


def out_of_space(out: Path, file: int) -> None:
    """The operating system refuses to let a file grow, from the `file`-th file of the second save on."""
    import resource

    seen = 0

    def fill(path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == 4 + file - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

    checkpoint._written = fill
    try:
        toy_run(out)
    except QVLError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (out / "error").write_text(str(error), encoding="utf-8")
        raise


@POSIX
@pytest.mark.parametrize("file", [2, 3, 4])
def test_full_disk(file: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert child(out_of_space, out, file) == 1
    message = (out / "error").read_text(encoding="utf-8")
    assert str(out / "checkpoints/step-000004") in message
    assert "free some disk space" in message
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]
    assert checkpoint.read(out / "checkpoints/step-000002").step == 2
    toy_run(out)
    same(out, whole)


def test_final_is_whole_or_absent(tmp_path: Path) -> None:
    def export(folder: Path, weights: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(QVLError, match=r"final: .*No space left.*free some disk space"):
        toy_run(tmp_path / "run", replace(toy_parts(network()), export=export))
    assert not (tmp_path / "run/final").exists()
    assert not (tmp_path / "run/.final.partial").exists()


# Which run is continued


def test_another_run_is_refused_and_every_difference_is_named(interrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    changed = toy_parts(network(), identity={"optim": {"lr": 2e-2}, "seed": 4}, base="other")
    with pytest.raises(BadInput) as error:
        toy_run(out, changed)
    assert error.value.exit_code == 2
    for part in ("base was none, is other", "optim.lr was 0.01, is 0.02", "seed was absent, is 4", "--allow-change"):
        assert part in str(error.value)
    outcome = toy_run(out, changed, allow_change=True)
    assert outcome.steps == STEPS


def test_resume_from_a_named_checkpoint_in_a_new_folder(interrupted: Path, whole: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "new", interrupted / "checkpoints/step-000004"
    with pytest.raises(Preempted):
        toy_run(out, replace(toy_parts(network()), callbacks=[raising(signal.SIGTERM, 7)]), resume=source)
    toy_run(out, resume=source)  # the same command continues
    assert events(out, "resume")[-1]["checkpoint"].endswith(str(Path("new/checkpoints/step-000007")))
    assert (out / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()


def test_resume_from_an_older_checkpoint_of_the_same_run_is_refused(interrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(interrupted, out)
    with pytest.raises(BadInput, match=r"step-000006 is newer; .*another --out"):
        toy_run(out, resume=out / "checkpoints/step-000004")


def test_resume_from_something_else_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(BadInput, match=r"is no checkpoint folder .*model\.init_from"):
        toy_run(tmp_path / "run", resume=tmp_path / "model")


def test_a_finished_run_is_left_as_it_is(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    outcome = toy_run(out)
    assert outcome.steps == STEPS
    same(out, whole)


# Early stopping


def stopping_parts(values: list[float], *callbacks: Callbacks, start: int = 0) -> Any:
    """Evaluations that give `values` after each step, in a run that goes on from step `start`."""
    done = [start]

    def evaluate(model: Any, world: Any, final: bool) -> dict[str, float]:
        return {"score": values[done[0] - 1], "other": float(done[0])}

    count = Callbacks(on_step=lambda step: done.__setitem__(0, step))
    return toy_parts(network(), evaluate=evaluate, callbacks=[count, *callbacks])


STOPPING = {"every": 1, "early_stop": {"metric": "score", "mode": "max", "patience": 3}}
SCORES = [0.1, 0.5, 0.3, float("nan"), 0.4, 0.9, 0.9, 0.9]


def test_early_stop_keeps_and_exports_the_best(tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", toy_recipe(evaluate=STOPPING, checkpoint={"every": 1, "keep": 1})
    outcome = toy_run(out, stopping_parts(SCORES), recipe)
    assert (outcome.steps, outcome.final_step) == (5, 2)  # 3, 4 and 5 are no better than 2
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002", "step-000005"]
    best = checkpoint.read(out / "checkpoints/step-000002").weights()
    exported = load_file(out / "final/model.safetensors")
    assert all(torch.equal(best[name], exported[name]) for name in best)


@pytest.mark.parametrize("step", range(1, 6))
def test_early_stop_survives_a_kill(step: int, tmp_path: Path) -> None:
    recipe = toy_recipe(evaluate=STOPPING)
    toy_run(tmp_path / "whole", stopping_parts(SCORES), recipe)
    assert child(_early_stop_killed, tmp_path / "run", step) != 0
    outcome = toy_run(tmp_path / "run", stopping_parts(SCORES), recipe)
    assert (outcome.steps, outcome.final_step) == (5, 2)
    for file in ("final/model.safetensors", "checkpoints/step-000005/optimizer-00000.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def _early_stop_killed(out: Path, step: int) -> None:
    toy_run(out, stopping_parts(SCORES, die_after(step)), toy_recipe(evaluate=STOPPING))


def test_the_last_step_can_be_the_best(tmp_path: Path) -> None:
    outcome = toy_run(
        tmp_path / "run", stopping_parts([0.1 * step for step in range(1, 9)]), toy_recipe(evaluate=STOPPING)
    )
    assert (outcome.steps, outcome.final_step) == (8, 8)


def test_the_best_checkpoint_comes_along_to_a_new_folder(tmp_path: Path) -> None:
    recipe = toy_recipe(evaluate=STOPPING)
    with pytest.raises(Preempted):
        toy_run(tmp_path / "old", stopping_parts(SCORES, raising(signal.SIGTERM, 4)), recipe)
    source = tmp_path / "old/checkpoints/step-000004"
    outcome = toy_run(tmp_path / "new", stopping_parts(SCORES, start=4), recipe, resume=source)
    assert (outcome.steps, outcome.final_step) == (5, 2)
    toy_run(tmp_path / "whole", stopping_parts(SCORES), recipe)
    final = [(tmp_path / name / "final/model.safetensors").read_bytes() for name in ("new", "whole")]
    assert final[0] == final[1]


def test_what_was_best_by_another_figure_or_on_other_samples_is_forgotten(tmp_path: Path) -> None:
    recipe = toy_recipe(evaluate=STOPPING, checkpoint={"every": 4})
    with pytest.raises(Preempted):
        toy_run(tmp_path / "old", stopping_parts(SCORES, raising(signal.SIGTERM, 4)), recipe)
    other = {"every": 1, "early_stop": {"metric": "other", "mode": "max", "patience": 3}}
    for name, evaluate, final_step, now in [
        ("off", {"every": 1}, 8, "off"),
        ("other", other, 8, "other max on validation "),
        ("fewer", {**STOPPING, "samples": 10}, 6, "score max on validation "),
    ]:
        shutil.copytree(tmp_path / "old", tmp_path / name)
        outcome = toy_run(tmp_path / name, stopping_parts(SCORES, start=4), toy_recipe(evaluate=evaluate))
        assert (outcome.steps, outcome.final_step) == (8, final_step)
        (event,) = events(tmp_path / name, "early_stop_changed")
        assert event["was"].startswith("score max on validation ")
        assert event["is"].startswith(now)
        assert event["is"] != event["was"]


def test_an_unknown_figure_names_those_there_are(tmp_path: Path) -> None:
    recipe = toy_recipe(evaluate={"every": 2, "early_stop": {"metric": "accuracy"}})
    with pytest.raises(
        BadInput, match=r"early_stop\.metric: there is no figure 'accuracy'; choose one of validation_loss"
    ):
        toy_run(tmp_path / "run", recipe=recipe)


# The rest


def test_callbacks_look_but_cannot_change_anything(whole: Path, tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {"log": [], "evaluate": [], "checkpoint": []}

    def meddle(step: int, figures: dict[str, float]) -> None:
        seen["log"].append(step)
        figures.clear()
        torch.manual_seed(0)

    callbacks = Callbacks(
        on_step=lambda step: torch.rand(step),  # type: ignore[arg-type, return-value]
        on_log=meddle,
        on_evaluate=lambda step, figures: seen["evaluate"].append(step),
        on_checkpoint=lambda step, path: seen["checkpoint"].append(step),
    )
    recipe = toy_recipe(evaluate={"every": 4})
    toy_run(tmp_path / "run", replace(toy_parts(network()), callbacks=[callbacks]), recipe)
    same(tmp_path / "run", whole)
    assert seen == {"log": [2, 4, 6, 8], "evaluate": [4, 8], "checkpoint": [2, 4, 6, 8]}


def test_bad_samples_are_listed_counted_once_and_bounded(tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", toy_recipe(data={"train": "none", "max_bad": 2})
    outcome = toy_run(out, toy_parts(network(), ToyBatches(seed=3, bad_steps=(1, 6))), recipe)
    assert list(outcome.progress.bad) == ["bad-1", "bad-6"]
    lines = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["reason"]) for line in lines] == [("bad-1", "broken"), ("bad-6", "broken")]
    assert [record["step"] for record in events(out, "bad_sample")] == [2, 7]


def test_a_sample_that_the_recipe_lets_drop_is_counted_once_and_in_few_words(tmp_path: Path) -> None:
    out, sizes = tmp_path / "run", []
    look = Callbacks(on_step=lambda step: sizes.append((out / "bad_samples.jsonl").stat().st_mtime_ns))
    batches = ToyBatches(seed=3, bad_steps=tuple(range(STEPS)), dropped="long")  # the same sample in each step
    outcome = toy_run(out, toy_parts(network(), batches, callbacks=[look]))
    assert (outcome.progress.dropped, outcome.progress.bad) == ({"long": "broken"}, {})
    assert len(set(sizes)) == 1  # written when it is new
    assert checkpoint.newest(out / "checkpoints")[0].state["progress"]["dropped"] == {"long": "broken"}  # type: ignore[union-attr]
    (line,) = (out / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"id": "long", "reason": "broken", "message": "", "tolerated": True}


def test_one_bad_sample_too_many_stops_with_the_state_saved(tmp_path: Path) -> None:
    out, batches = tmp_path / "run", ToyBatches(seed=3, bad_steps=(1, 4))
    for _ in range(2):
        with pytest.raises(BadInput, match=r"bad-4 is broken; mend it; data\.max_bad allows 1 bad samples") as error:
            toy_run(out, toy_parts(network(), batches), toy_recipe(data={"train": "none", "max_bad": 1}))
        assert error.value.exit_code == 2
        assert checkpoint.newest(out / "checkpoints")[0].step == 4  # type: ignore[union-attr]
        assert len(events(out, "bad_sample")) == 2
    raised = toy_recipe(data={"train": "none", "max_bad": 2})
    assert toy_run(out, toy_parts(network(), batches), raised).steps == STEPS


def test_the_for_stands_once() -> None:
    package = Path(checkpoint.__file__).parents[1]
    loops = [
        (file.name, line.strip())
        for file in package.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("for step in range(")
    ]
    assert loops == [("loop.py", "for step in range(session.step, parts.steps):")]


def test_the_log_goes_up_and_up(whole: Path) -> None:
    steps = [record["step"] for record in RunFolder(whole).read_metrics()]
    assert all(before <= after for before, after in pairwise(steps))
