"""The launcher with real processes: what they are told, and what becomes of the others when one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qvl_core.errors import BadInput
from qvl_core.slurm import powershell, script
from qvl_core.training import launch as module
from qvl_core.training.launch import environment, launch, launched

RANK = "import os, sys, time; rank = int(os.environ['RANK']); "
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such signals")


def python(code: str) -> list[str]:
    return ["-c", RANK + code]


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_each_process_knows_its_place(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = "import json, pathlib; pathlib.Path(sys.argv[1], str(rank)).write_text(json.dumps(dict(os.environ)))"
    assert launch([*python(code), str(tmp_path)], 2) == 0
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    for rank, variables in enumerate(told):
        assert variables["RANK"] == variables["LOCAL_RANK"] == str(rank)
        assert variables["WORLD_SIZE"] == variables["LOCAL_WORLD_SIZE"] == "2"
        assert variables["MASTER_ADDR"] == "127.0.0.1"
        assert variables["OMP_NUM_THREADS"] == "1"
    assert told[0]["MASTER_PORT"] == told[1]["MASTER_PORT"]


def test_threads_that_the_user_set_stay():
    assert environment({"OMP_NUM_THREADS": "4"}, 0, 2, 1)["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in environment({}, 0, 1, 1)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("sys.exit(75)", 75),
        ("sys.exit(75 if rank else 0)", 75),
        ("sys.exit(2)", 2),
        ("time.sleep(0.5 * rank); sys.exit(1 + rank)", 1),
        ("time.sleep(0.5 * rank); sys.exit(1 if rank else 75)", 1),  # a failure is told even where others were saved
    ],
)
def test_the_exit_code_of_the_run(code, expected):
    assert launch(python(code), 2) == expected


@posix
def test_a_killed_process_counts_as_a_failure():
    assert launch(python("os.kill(os.getpid(), 9) if rank else time.sleep(60)"), 2, grace=0.2) == 128 + 9


def test_one_failure_ends_the_others():
    began = time.monotonic()
    assert launch(python("sys.exit(3) if rank else time.sleep(60)"), 2, grace=0.2) == 3
    assert time.monotonic() - began < 20


@posix
def test_a_process_deaf_to_sigterm_is_killed():
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    began = time.monotonic()
    assert launch(python(deaf + "(time.sleep(0.5), sys.exit(3)) if rank else time.sleep(60)"), 2, grace=0.2) == 3
    assert time.monotonic() - began < 20


def test_a_preempted_process_does_not_end_one_that_still_saves(tmp_path):
    code = "sys.exit(75) if rank else (time.sleep(1), open(sys.argv[1], 'w').close(), sys.exit(75))"
    assert launch([*python(code), str(tmp_path / "saved")], 2, grace=0.1) == 75
    assert (tmp_path / "saved").exists()


LISTENER = (
    "import signal, pathlib; "
    "number = getattr(signal, sys.argv[1]); "
    "signal.signal(number, lambda *_: sys.exit(75)); "
    "pathlib.Path(sys.argv[2], str(rank)).write_text(str(os.getpid())); "
    "time.sleep(60)"
)


def start(folder: Path, code: str, *args: str) -> subprocess.Popen:
    """A launcher of two processes, returned once both are up (each has written its number into `folder`)."""
    call = f"import sys; from qvl_core.training.launch import launch; sys.exit(launch({[*python(code), *args]!r}, 2))"
    launcher = subprocess.Popen([sys.executable, "-c", call])
    wait_for(lambda: len(pids(folder)) == 2)
    return launcher


def pids(folder: Path) -> list[int]:
    return [int(text) for file in folder.iterdir() if (text := file.read_text())]


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signals_reach_every_process(tmp_path, name):
    launcher = start(tmp_path, LISTENER, name, str(tmp_path))
    launcher.send_signal(getattr(signal, name))
    assert launcher.wait(timeout=20) == 75
    assert not [pid for pid in pids(tmp_path) if psutil.pid_exists(pid)]


def test_children_do_not_outlive_a_launcher_that_was_killed(tmp_path):
    code = (
        "from qvl_core.training.launch import end_with_launcher; end_with_launcher(); "
        "import pathlib; pathlib.Path(sys.argv[1], str(rank)).write_text(str(os.getpid())); time.sleep(60)"
    )
    launcher = start(tmp_path, code, str(tmp_path))
    children = pids(tmp_path)
    assert all(psutil.pid_exists(pid) for pid in children)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not [pid for pid in children if _alive(pid)])


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_process_under_torchrun_knows_it(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not launched()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    assert launched()


def test_the_launcher_needs_no_torch():
    code = f"import sys, {module.__name__}; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# SLURM

SRUN = """#!/bin/bash
# Stands in for srun: two nodes of two tasks, one after the other.
while [[ "$1" == --* ]]; do shift; done
worst=0
for task in 0 1 2 3; do
  SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@"
  code=$?
  if [ "$code" -gt "$worst" ]; then worst=$code; fi
done
exit "$worst"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" >> "$CALLS"; fi
"""


def run_script(folder: Path, code: str, *args: str) -> tuple[int, list[str], str]:
    """Run the sbatch script beside small stand-ins for SLURM's commands: exit code, lines printed, scontrol's calls."""
    for name, text in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("python", f'#!/bin/bash\nexec {sys.executable} "$@"\n'),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    text = script(["-c", code, *args], name="mine", nodes=2, nproc=2, cpus=3)
    env = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "41234",
        "SLURM_JOB_NODELIST": "n",
        "CALLS": str(calls),
    }
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines(), calls.read_text()


@posix
def test_the_sbatch_script_gives_every_process_its_variables(tmp_path):
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"]
    code = f"import os, sys; print(*(os.environ[name] for name in {names}), sys.argv[1])"
    exit_code, lines, calls = run_script(tmp_path, code, "a 'quoted' $word")
    assert exit_code == 0
    assert lines == [f"{rank} {rank % 2} 4 2 node7 21234 3 a 'quoted' $word" for rank in range(4)]
    assert not calls


@posix
@pytest.mark.parametrize(("code", "requeued"), [(75, True), (1, False)])
def test_only_a_preempted_job_is_queued_again(tmp_path, code, requeued):
    exit_code, _, calls = run_script(tmp_path, f"raise SystemExit({code})")
    assert exit_code == code
    assert calls == ("requeue 41234\n" if requeued else "")


def test_what_the_script_asks_slurm_for():
    text = script(
        ["-m", "qvl_sft", "train", "lora_4b"], name="lora_4b", nodes=2, nproc=8, partition="gpu", account="vision"
    )
    for line in (
        "--job-name=lora_4b",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gres=gpu:8",
        "--signal=USR1@120",
        "--requeue",
        "--partition=gpu",
        "--account=vision",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "--gres" not in script(["x"], name="x", gpus=False)
    assert "partition" not in script(["x"], name="x")


def test_the_powershell_line():
    line = powershell(["-m", "qvl_sft", "train", "my recipe.yaml", "model.name=it's", "optim.lr=1e-4", "--nproc", "2"])
    assert line == "python -m qvl_sft train 'my recipe.yaml' 'model.name=it''s' optim.lr=1e-4 --nproc 2\n"
    with pytest.raises(BadInput, match="one machine"):
        powershell(["x"], nodes=2)
