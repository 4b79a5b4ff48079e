"""The formats samples are read from and written to, each in its own file, behind one registry.

A format is a class with `matches(row)`, `read(row, place)` and `write(sample)`, decorated with `@register(name)`.
`write(read(row)) == row` for every row it reads: what the sample has no field for travels in `sample.extra`. A format
whose columns may have other names takes them as `columns` (field -> column) when it is made.
"""

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from itertools import islice
from typing import Any, Protocol, TypeVar

from qvl_core.errors import BadInput

from ..errors import BadSample
from ..sample import Sample
from .renamed import Renamed


class Format(Protocol):
    """How one format turns a parsed JSON value into a sample, and back."""

    def matches(self, row: Any) -> bool:
        """Whether a row looks like this format; used to recognise a file."""
        ...

    def read(self, row: Any, place: str) -> Sample:
        """The sample of one row. Raises BadSample at `place`."""
        ...

    def write(self, sample: Sample) -> Any:
        """The row of one sample. Raises BadSample where the format cannot say it."""
        ...


# in the order in which a file is recognised
_SHIPPED = (
    "qvl",
    "sharegpt",
    "qwenvl",
    "kodoc",
    "hf",
    "openai",
    "llava",
    "metaquery",
    "omniedit",
    "edit",
    "alpaca",
    "coco",
    "mimic",
    "mmc4",
    "obelics",
    "omnicorpus",
    "wds",
)
_LAST = "flat"
"""Any table whose columns have the names of its fields, so what another format takes is none."""
_KEYS = ("messages", "conversations", "texts", "source_image", "target_image", "source_images")
_formats: dict[str, type[Format]] = {}
F = TypeVar("F", bound=Format)


def register(name: str) -> Callable[[type[F]], type[F]]:
    """Class decorator: make a format known under `name`."""

    def add(kind: type[F]) -> type[F]:
        _formats[name] = kind
        return kind

    return add


def formats() -> dict[str, type[Format]]:
    """All known formats by name, in the order in which a file is recognised."""
    for name in (*_SHIPPED, _LAST):
        import_module(f"{__name__}.{name}")
    first = dict.fromkeys((*_SHIPPED, *(name for name in _formats if name != _LAST)))
    return {name: _formats[name] for name in (*first, _LAST)}


def get_format(name: str, columns: Mapping[str, str] | None = None) -> Format:
    """The format called `name`, its fields in the named columns. Raises BadInput."""
    known = formats()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f'did you mean "{close[0]}"?' if close else f"known are {', '.join(sorted(known))}."
        raise BadInput(f'unknown format "{name}"; {hint}')
    if not columns:
        return known[name]()
    if name == "qvl":
        raise BadInput('the fields of format "qvl" cannot be renamed; remove --map, or use --from-format flat.')
    if "columns" in signature(known[name]).parameters:
        return known[name](columns=columns)  # type: ignore[call-arg]
    if double := next((column for column in columns.values() if list(columns.values()).count(column) > 1), None):
        raise BadInput(f'--map: column "{double}" stands for two fields; name one column for each.')
    return Renamed(known[name](), columns)


def recognise(row: Any, place: str) -> Format:
    """The format that a row is written in. Raises BadSample."""
    for kind in formats().values():
        if (form := kind()).matches(row):
            return form
    if not isinstance(row, dict):
        turns = isinstance(row, list) and any(isinstance(turn, dict) and "role" in turn for turn in row[:1])
        found, meant = type(row).__name__, '; put the list under "messages"' if turns else None
    else:
        found = f"keys {', '.join(map(str, islice(row, 100)))[:80]}"
        near = ((key, difflib.get_close_matches(str(key), _KEYS, 1, 0.8)) for key in islice(row, 100))
        meant = next((f'; rename "{key}" to "{close[0]}"' for key, close in near if close and key != close[0]), None)
    fix = meant or "; map its columns (--map user=question,assistant=answer,image=photo)"
    raise BadSample("format", f"no known format ({found}){fix}, or name one of {', '.join(sorted(_formats))}", place)
