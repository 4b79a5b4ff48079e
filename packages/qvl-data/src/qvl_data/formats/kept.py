"""What a row holds beside its sample, as JSON: tables hold bytes, dates, decimals and NaN, which JSON has no words for.

Each becomes an object of one key, such as `{"$bytes": "aGk="}`. An object of one such key that was there before goes
into another, `{"$object": {"$bytes": 1}}`, so that `restore(keep(value)) == value` for everything that is kept.
"""

import base64
import math
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

_WORDS: dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    bytes: ("$bytes", lambda value: base64.b64encode(value).decode(), base64.b64decode),
    datetime: ("$datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("$date", date.isoformat, date.fromisoformat),
    time: ("$time", time.isoformat, time.fromisoformat),
    Decimal: ("$decimal", str, Decimal),
    float: ("$float", str, float),  # nan and inf; the others are JSON numbers
}
_READ = {name: read for name, _, read in _WORDS.values()}


def keep(value: Any) -> Any:
    """The value as JSON. Raises TypeError for what cannot be kept, such as an object with keys that are no text."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("an object with keys that are no text")
        inner = {key: keep(item) for key, item in value.items()}
        return {"$object": inner} if _is_word(value) else inner
    if isinstance(value, list):
        return [keep(item) for item in value]
    if isinstance(value, tuple):  # the entries of a map in Arrow
        return {"$tuple": [keep(item) for item in value]}
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if type(value) not in _WORDS:
        raise TypeError(f"a value of type {type(value).__name__}")
    name, write, _ = _WORDS[type(value)]
    return {name: write(value)}


def restore(value: Any) -> Any:
    """The value that was kept."""
    if isinstance(value, list):
        return [restore(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _is_word(value):
        name, inner = next(iter(value.items()))
        if name == "$object" and isinstance(inner, dict):
            return {key: restore(item) for key, item in inner.items()}
        if name == "$tuple" and isinstance(inner, list):
            return tuple(restore(item) for item in inner)
        if name in _READ and isinstance(inner, str):
            return _READ[name](inner)
    return {key: restore(item) for key, item in value.items()}


def plain(value: Any) -> Any:
    """The value for a line of JSON: dates and decimals as text, NaN as null, which no way leads back from."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_word(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")
