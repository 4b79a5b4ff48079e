"""`--plugin FILE.py`: the user's own encoders, metrics, formats and callbacks, registered before a verb runs.

Only the command line names plugins, never a recipe: opening someone's recipe runs none of their code.
"""

import importlib.util
import sys
import traceback
from pathlib import Path

from qvl_core.cli.failure import known_to_all
from qvl_core.errors import BadInput


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
    if not file or not path.is_file() or path.suffix != ".py":
        raise known_to_all(BadInput(f"--plugin {file}: there is no such Python file; write --plugin FILE.py."))
    name = f"qvl_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # cannot be: the suffix is .py
        raise ImportError(file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise known_to_all(BadInput(f"{error.filename}:{error.lineno}: {error.msg}.")) from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _same(frame.filename, path)]
        place = f"{file}:{lines[-1]}" if lines else file
        raise known_to_all(BadInput(f"{place}: the plugin failed: {type(error).__name__}: {error}.")) from error


def _same(filename: str, path: Path) -> bool:
    return Path(filename).resolve() == path.resolve()
