"""Which commits of the hub a run stands on: a branch may move while a run is interrupted, and a commit does not.

with commits(known) as found:       # {"Qwen/Qwen3-VL-4B-Instruct": "0123..."}, what an earlier start has found
    ...                             # models are opened at these commits, others are added to `found`
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_found: ContextVar["dict[str, str] | None"] = ContextVar("found", default=None)


@contextmanager
def commits(known: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Inside, `known` says at which commit a model is opened. Within another such block, all that is found is its."""
    found = dict(known) if (outer := _found.get()) is None else outer
    for name, commit in known.items():
        found.setdefault(name, commit)
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def commit_at(name: str, revision: str | None) -> str | None:
    """What to open for a revision of a model: its commit where it is known."""
    return (_found.get() or {}).get(_key(name, revision), revision)


def note_commit(name: str, revision: str | None, commit: str) -> None:
    """A revision of a model was opened at a commit."""
    if (found := _found.get()) is not None:
        found[_key(name, revision)] = commit


def _key(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}@{revision}"
