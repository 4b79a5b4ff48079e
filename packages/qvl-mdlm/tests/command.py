"""The command line in this process."""

import contextlib
import io
from typing import NamedTuple


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def qvl_mdlm(*args: str) -> Done:
    """Run `qvl-mdlm *args` in this process."""
    from qvl_mdlm.cli import app

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = app.run(list(args))
    return Done(code, out.getvalue(), err.getvalue())
