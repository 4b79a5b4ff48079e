"""pydantic's errors as sentences: the place, the key, what was given, and what is allowed."""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qvl_core.recipe.names import close, suggestion
from qvl_core.recipe.nodes import Node, Place, Problem
from qvl_core.recipe.typed import alternatives, inside, meaning

Path = tuple[str | int, ...]

# What a value of the wrong type should have been.
_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a block of keys",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a block of keys",
    "model_type": "a block of keys",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}


def problems(error: ValidationError, kind: type[BaseModel], root: Node) -> list[Problem]:
    """One problem per place, in plain sentences."""
    found: list[Problem] = []
    wanted: dict[tuple[Place, Path], list[ErrorDetails]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        if detail["type"] == "missing":
            node, path = _follow(root, location[:-1])
            found.append(Problem(node.place, _missing(kind, path, location[-1])))
        elif detail["type"] == "extra_forbidden":
            node, path = _follow(root, location)
            found.append(Problem(node.place, _unknown(kind, path)))
        elif detail["type"] in ("value_error", "assertion_error"):
            node, path = _follow(root, location)
            name = f"{_dotted(path)}: " if path else ""
            found.append(Problem(node.place, name + str(detail["ctx"]["error"]).rstrip(".")))
        else:
            node, path = _follow(root, location)
            wanted[node.place, path].append(detail)
    for (place, path), details in wanted.items():  # a union complains once for each of its types
        found.append(Problem(place, _wrong(path, details)))
    return found


def _follow(root: Node, location: Path) -> tuple[Node, Path]:
    """The node that an error is about. Parts that are no keys of the text (union members, shorthands) are left out."""
    node, path = root, cast(Path, ())
    for part in location:
        content: Any = node.content
        if part in (content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()):
            node, path = content[part], (*path, part)
    return node, path


def _missing(kind: type[BaseModel], path: Path, key: str | int) -> str:
    for owner in _types(kind, path):
        if isinstance(owner, type) and issubclass(owner, BaseModel) and key in owner.model_fields:
            help = meaning(owner.model_fields[str(key)]).split(". ")[0].rstrip(".")
            return f'missing key "{_dotted((*path, key))}"' + (f": {help}" if help else "")
    return f'missing entry "{_dotted((*path, key))}"'


def _unknown(kind: type[BaseModel], path: Path) -> str:
    owners = _types(kind, path[:-1])
    for owner in list(owners):  # one block in place of a list of blocks
        owners += inside([owner], 0) if not isinstance(owner, type) else []
    models = [owner for owner in owners if isinstance(owner, type) and issubclass(owner, BaseModel)]
    siblings = [name for model in models for name in model.model_fields]
    meant = suggestion(kind, _dotted(path[:-1]), str(path[-1]), siblings)
    return f'unknown key "{_dotted(path)}"; {meant}'


def _wrong(path: Path, details: list[ErrorDetails]) -> str:
    given = details[0]["input"]
    allowed = list(dict.fromkeys(_allowed(detail) for detail in details))
    choices = [str(choice) for detail in details for choice in _choices(detail)]
    meant = close(given, choices) if isinstance(given, str) else ""
    return f'"{_dotted(path)}" must be {" or ".join(allowed)}, not {_shown(given)}{meant}'


def _allowed(detail: ErrorDetails) -> str:
    name, context = detail["type"], detail.get("ctx", {})
    if name in _WANTED:
        return _WANTED[name]
    if choices := _choices(detail):
        return ("one of " if len(choices) > 1 else "") + ", ".join(choices)
    match name:
        case "greater_than":
            return f"greater than {context['gt']:g}"
        case "greater_than_equal":
            return f"at least {context['ge']:g}"
        case "less_than":
            return f"less than {context['lt']:g}"
        case "less_than_equal":
            return f"at most {context['le']:g}"
        case "too_short":
            return f"a list of at least {context['min_length']}"
        case "too_long":
            return f"a list of at most {context['max_length']}"
    return detail["msg"].removeprefix("Input should be ").removeprefix("Value should be ")


def _choices(detail: ErrorDetails) -> list[str]:
    if detail["type"] not in ("literal_error", "enum"):
        return []
    return [part.strip("'") for part in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _types(kind: type[BaseModel], path: Path) -> list[Any]:
    kinds = alternatives(kind)
    for part in path:
        kinds = inside(kinds, part)
    return kinds


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def _shown(given: Any) -> str:
    if isinstance(given, Mapping):
        return "a block"
    if isinstance(given, list | tuple):
        return f"a list of {len(given)}"
    text = json.dumps(given, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f'{text[:57]}..."'
