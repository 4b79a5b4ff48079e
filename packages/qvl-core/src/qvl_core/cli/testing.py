"""For the tests of every package: what `--help` of each verb costs and loads.

def test_help():
    for help in help_of_every_verb("qvl_sft.cli"):
        assert help.seconds <= 0.5 and not help.loaded
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from typer.main import get_command

HEAVY = ("torch", "pydantic", "transformers", "peft", "accelerate", "pyarrow", "matplotlib", "numpy", "rich.console")

_SNIPPET = """
import contextlib, io, json, sys, time
from {module} import app
with contextlib.redirect_stdout(io.StringIO()) as out:
    code = app.run({args})
loaded = [name for name in {heavy} if name in sys.modules]
print(json.dumps([code, out.getvalue(), time.process_time(), loaded]))
"""


class Help(NamedTuple):
    """One `--help`: CPU seconds of its whole process, and the heavy libraries that it loaded."""

    verb: str
    code: int
    text: str
    seconds: float
    loaded: list[str]


def help_of_every_verb(module: str) -> Iterator[Help]:
    """Ask every verb of `module.app` for help, each in a process of its own."""
    app = importlib.import_module(module).app
    for verb in _verbs(get_command(app._typer), ()):
        yield min((_help(module, verb) for _ in range(2)), key=lambda help: help.seconds)  # the machine may be busy


def _help(module: str, verb: tuple[str, ...]) -> Help:
    snippet = _SNIPPET.format(module=module, args=[*verb, "--help"], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
    return Help(" ".join(verb), *json.loads(done.stdout))


def _verbs(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    for name, verb in getattr(command, "commands", {}).items():
        yield from _verbs(verb, (*path, name))
