"""`--plugin FILE.py`: the user's own encoders, metrics, formats and callbacks, registered before a verb runs.

Only the command line names plugins, never a recipe: opening someone's recipe runs none of their code.
"""

import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

from qvl_core.errors import BadInput, known_to_all


def run_named(args: list[str]) -> list[str]:
    """Execute the files that `--plugin` names, wherever it stands, and return the other arguments."""
    rest: list[str] = []
    waiting = iter(args)
    for arg in waiting:
        if arg == "--":
            return [*rest, arg, *waiting]
        if arg == "--plugin":
            execute(next(waiting, ""))
        elif arg.startswith("--plugin="):
            execute(arg.removeprefix("--plugin="))
        else:
            rest.append(arg)
    return rest


def execute(file: str) -> None:
    """Import `file` as the module `qvl_plugin_<name>`. What goes wrong in it is one sentence with its line."""
    path = Path(file)
    if not file:
        raise _wrong("--plugin: give it a Python file, such as --plugin my_parts.py.")
    if not path.is_file():
        raise _wrong(f"--plugin {file}: there is no such file.")
    loader = SourceFileLoader(f"qvl_plugin_{path.stem}", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None  # only a loader that says so has none
    module = sys.modules[loader.name] = module_from_spec(spec)
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        raise _wrong(f"{file}:{error.lineno or 1}: {error.msg}.") from error
    except (Exception, SystemExit) as error:
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        place = f"{file}:{inside[-1]}" if inside else file
        raise _wrong(f"{place}: the plugin failed: {type(error).__name__}: {error}.") from error


def _wrong(sentence: str) -> BadInput:
    return known_to_all(BadInput(sentence))
