"""Kill -9 in the middle of a verb, at every place where it touches the disk, and see that the same command mends it.

This file is also the program that runs in the child.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from qvl_core.testing import operations


def check_every_kill(
    command: Callable[[Path], list[str]], tmp_path: Path, every: int = 1, twice: bool = True, code: int = 0
) -> int:
    """Run `qvl-data *command(out)` whole, then killed before each `every`-th file operation and once more to the end.

    All runs must leave the same bytes in `out`. With `twice`, a second run of the finished command must change nothing.
    `command` must give relative outputs the same name in every `out`, and exit with `code`. Returns the number of
    operations.
    """
    whole = tmp_path / "whole"
    whole.mkdir(parents=True)
    operations = int(_child(command(whole), 0, code).stderr.rsplit("operations: ", 1)[1])
    expected = tree(whole)
    assert expected
    if twice:
        _child(command(whole), 0, code)
        assert tree(whole) == expected
    for number in range(1, operations + 1, every):
        out = tmp_path / f"killed-{number}"
        out.mkdir()
        killed = _child(command(out), number)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        _child(command(out), 0, code)
        found = tree(out)
        assert found.keys() == expected.keys(), f"killed before operation {number}"
        different = [name for name in expected if found[name] != expected[name]]
        assert not different, f"killed before operation {number}: {different} differ"
    return operations


def tree(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder by its relative path; journals, which name their folder, left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".job.jsonl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


def _child(args: list[str], number: int, code: int | None = None) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(number), *args], capture_output=True, text=True, encoding="utf-8", env=env
    )
    assert code is None or done.returncode == code, done.stderr
    return done


def _main(number: int, args: list[str]) -> None:
    from qvl_data.cli import app

    with operations(number) as done:
        code = app.run(args)
    print(f"operations: {len(done)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
