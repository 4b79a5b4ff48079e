"""Samples that cannot be used and are left out of what is written: counted, listed, and only so many of them."""

import json
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from .errors import BadSample
from .job import write_text
from .shards import Figures

LEFT_OUT = "left_out.jsonl"
Limit = Callable[[Figures, str, BadSample], None]
"""`leave_out` with its limit: figures of the shard, place of the sample, and what is wrong with it."""


def leave_out(figures: Figures, place: str, error: BadSample, *, max_bad: int, before: Set[str] = frozenset()) -> None:
    """Note in a shard's figures that the sample at `place` is left out. Raises the error if it is one too many.

    before  places of those that earlier shards left out; a sample that comes again counts once
    """
    named = {"place": error.place or place, "id": error.sample_id, "reason": error.reason, "problem": error.problem}
    here = {entry["place"] for entry in figures.left_out}
    if named["place"] in here:
        return
    if len(before | here | {named["place"]}) > max_bad:
        raise error if error.place else error.at(place, "")
    figures.left_out.append(named)


def places(figures: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Of all samples that shards left out, by their figures as JSON."""
    return frozenset(entry["place"] for given in figures for entry in given["left_out"])


def check_left_out(figures: Iterable[Mapping[str, Any]], max_bad: int) -> None:
    """Raise BadSample for the first that is too many, of shards that were written when more were allowed."""
    for entry in Figures.total(Figures(**given) for given in figures).left_out[max_bad:]:
        raise BadSample(entry["reason"], entry["problem"], entry["place"], entry["id"])


def write_list(figures: Iterable[Mapping[str, Any]], file: Path) -> None:
    """List all that was left out, one on a line; without any there is no file."""
    if left_out := Figures.total(Figures(**given) for given in figures).left_out:
        write_text(file, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in left_out))
    else:
        file.unlink(missing_ok=True)
