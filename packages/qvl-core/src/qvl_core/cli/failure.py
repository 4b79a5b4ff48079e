"""From an exception to what the user reads and the exit code that scripts and schedulers read."""

import errno
import os
import re
import sys
import traceback
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from typer import TyperException

from qvl_core.errors import ALIKE, Preempted, QVLError
from qvl_core.printable import printable


def rank() -> int:
    """This process's number among those of a run; 0 when it is alone."""
    return int(os.environ.get("RANK") or 0)


def report(error: Exception, command: str) -> int:
    """Show `error` on stderr and return the exit code: one sentence, or the traceback of what nobody foresaw."""
    alike = isinstance(error, (Preempted, TyperException)) or ALIKE in getattr(error, "__notes__", [])
    code, sentence = _understood(error, command)
    if alike and rank() > 0:
        return code
    if sentence is None or os.environ.get("QVL_DEBUG") == "1":
        print(printable("".join(traceback.format_exception(error)), "\n\t"), file=sys.stderr, end="")
    if sentence is None:
        sentence = (
            f"{versions(command)} failed in a way it should not: please report it on the project's issue tracker, "
            f"with the lines above and what `{command} doctor` prints."
        )
    where = f"[rank {rank()}] " if rank() > 0 else ""
    print(where + printable(sentence, "\n"), file=sys.stderr, flush=True)
    return code


def _understood(error: Exception, command: str) -> tuple[int, str | None]:
    """Exit code, and the sentence if the error is one that the user can act on."""
    if isinstance(error, QVLError):
        return error.exit_code, str(error)
    if isinstance(error, TyperException):
        return error.exit_code, _usage(error, command)
    if isinstance(error, ModuleNotFoundError) and error.name and find_spec(library := error.name.split(".")[0]) is None:
        return 1, f"the library {library} is not installed; `{command} doctor` shows the line that installs it."
    if _errno(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        place = f"{name}: " if (name := getattr(error, "filename", None)) else ""
        return 1, f"{place}the disk is full; free some space and run the same command again."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it; a step of training says more
        return 1, (
            "the device's memory is full; end what else uses it, or take smaller pictures, a model of fewer bits or "
            "parameters, or a larger device."
        )
    if isinstance(error, PermissionError) and error.filename:
        return (
            1,
            f"{error.filename}: not allowed to read or write here; change its permissions or choose another place.",
        )
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):  # pydantic's, without importing it
        return 2, "\n".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}." for one in error.errors()
        )
    return 1, None


def _errno(error: Exception) -> int | None:
    """The operating system's number; safetensors, which is not imported for this, says it in its text alone."""
    if type(error).__name__ == "SafetensorError" and (match := re.search(r"\(os error (\d+)\)", str(error))):
        return int(match[1])
    return error.errno if isinstance(error, OSError) else None


def _usage(error: TyperException, command: str) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else command
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):
        known = (
            [name for parameter in context.command.get_params(context) for name in parameter.opts] if context else []
        )
        options = [name for name in known if name.startswith("--")]
        return f"{path}: unknown option {option}; {meant(option, options)}"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{path}: {text[:1].lower()}{text[1:]}; see `{path} --help`."


def meant(word: str, known: list[str]) -> str:
    """The second half of a sentence about an unknown word."""
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."


def versions(command: str) -> str:
    """`qvl-sft 0.1.0`, from what is installed."""
    try:
        return f"{command} {version(command)}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return command
