"""Errors a user can act on: one sentence with what, where and how to fix. The command line makes exit codes of them."""

from typing import TypeVar

E = TypeVar("E", bound=Exception)
ALIKE = "the same in every process"


class QVLError(Exception):
    """The run failed (exit 1)."""

    exit_code = 1


class BadInput(QVLError):
    """A recipe, a data file or an argument is wrong (exit 2)."""

    exit_code = 2


class Preempted(QVLError):
    """The run was asked to stop; its state is saved and the same command continues it (exit 75)."""

    exit_code = 75


def known_to_all(error: E) -> E:
    """Mark an error that every process of a run has alike: only the first one shows it."""
    error.add_note(ALIKE)
    return error


def first_line(error: BaseException) -> str:
    """What a library says, as part of a sentence; the kind of the error, if it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(".: \r") or type(error).__name__
