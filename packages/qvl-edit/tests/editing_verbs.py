"""The command line in this process."""

import contextlib
import io
from typing import NamedTuple

from qvl_edit.cli import app


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def qvl_edit(*args: object) -> Done:
    """Run `qvl-edit *args`."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = app.run([str(arg) for arg in args])
    return Done(code, out.getvalue(), err.getvalue())
