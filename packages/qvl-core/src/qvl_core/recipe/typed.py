"""What a scalar of a recipe means: the declared type of its field decides.

YAML 1.1, which PyYAML implements, reads `5e-4` as text and `on` and `no` as booleans. Here a number is a number where
a number is wanted, text stays exactly as written where text is wanted, and only true and false are booleans.
"""

import math
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qvl_core.recipe.nodes import Node, Scalar

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

Plain = None | bool | int | float | str


def alternatives(annotation: Any) -> list[Any]:
    """The types a value may have, with unions and annotations taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [one for part in get_args(annotation) for one in alternatives(part)]
    return [annotation]


def inside(kinds: list[Any], key: str | int) -> list[Any]:
    """The types of the entry `key` of a value that has one of the types `kinds`."""
    found: list[Any] = []
    for kind in kinds:
        origin, arguments = get_origin(kind) or kind, get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if key in kind.model_fields:
                found += alternatives(kind.model_fields[str(key)].annotation)
        elif origin is dict and len(arguments) == 2:
            found += alternatives(arguments[1])
        elif origin is tuple and isinstance(key, int) and arguments:
            found += alternatives(arguments[0 if Ellipsis in arguments else min(key, len(arguments) - 1)])
        elif origin in (list, set, frozenset) and arguments:
            entry = alternatives(arguments[0])
            found += entry if isinstance(key, int) else inside(entry, key)  # a lone block stands for a list of one
    return found


def meaning(field: FieldInfo) -> str:
    """What a field is for: its description, else that of the block in it."""
    blocks = [kind for kind in alternatives(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return " ".join((field.description or " ".join(block.__doc__ or "" for block in blocks)).split())


def value(node: Node, kinds: list[Any]) -> Any:
    """The plain Python value of a node for a field that has one of the types `kinds`."""
    content = node.content
    if isinstance(content, dict):
        return {key: value(child, inside(kinds, key)) for key, child in content.items()}
    if isinstance(content, list):
        entries = [value(child, inside(kinds, index)) for index, child in enumerate(content)]
        return tuple(entries) if any(get_origin(kind) is tuple for kind in kinds) else entries
    return scalar(content, kinds)


def scalar(written: Scalar, kinds: list[Any]) -> Plain | Path:
    """`written` as the value that `kinds` ask for; where they leave it open, as YAML 1.2 reads it."""
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    wants_text = any(kind in (str, Path) for kind in kinds)
    wants_number = any(kind in (int, float) for kind in kinds)
    if written.text in choices:
        return written.text
    read = resolve(written.text) if written.plain or wants_number else written.text
    if wants_text and not wants_number and read is not None:
        return written.text if str in kinds else Path(written.text)
    if isinstance(read, float) and read.is_integer() and int in kinds and float not in kinds:
        return int(read)  # 1e3 steps
    return read


def resolve(text: str) -> Plain:
    """What unquoted text means by itself: null, a boolean, a finite number, or text."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) and len(text) < 4000:  # Python refuses longer ones
        return int(text)
    if FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text
