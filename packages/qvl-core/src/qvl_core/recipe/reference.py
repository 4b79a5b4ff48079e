"""A recipe's reference page and its JSON schema, both from the field descriptions of the model."""

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qvl_core.recipe.typed import alternatives, meaning

_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", type(None): "null"}
_SIGNS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= "}


def reference(kind: type[BaseModel]) -> str:
    """A Markdown page with every key of the recipe: type, default, description; one table per block."""
    parts = ["# Recipe reference", _paragraph(kind)]
    parts += [_table(kind.model_fields, "")]
    seen: dict[type[BaseModel], str] = {}
    for path, block in _blocks(kind, ""):
        if block in seen:
            parts += [f"## `{path}`", f"The same keys as `{seen[block]}`."]
        else:
            parts += [f"## `{path}`", _paragraph(block), _table(block.model_fields, f"{path}.")]
            seen[block] = path
    return "\n\n".join(part for part in parts if part) + "\n"


def schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of the recipe, for editors.

    Saved beside a recipe, it is used by editors with a YAML language server when the recipe's first line says

        # yaml-language-server: $schema=recipe.schema.json
    """
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema()}


def _blocks(kind: type[BaseModel], prefix: str) -> list[tuple[str, type[BaseModel]]]:
    """Every block below `kind` with its path; `*` is a name that the recipe chooses, `N` the number of an entry."""
    found = []
    for name, field in kind.model_fields.items():
        for suffix, block in _models(field.annotation, f"{prefix}{name}"):
            found += [(suffix, block), *_blocks(block, f"{suffix}.")]
    return found


def _models(annotation: Any, path: str) -> list[tuple[str, type[BaseModel]]]:
    found: list[tuple[str, type[BaseModel]]] = []
    for one in alternatives(annotation):
        origin, arguments = get_origin(one), get_args(one)
        if isinstance(one, type) and origin is None and issubclass(one, BaseModel):
            found.append((path, one))
        elif origin is dict:
            found += _models(arguments[1], f"{path}.*")
        elif origin is list:
            found += _models(arguments[0], f"{path}.N")
    return found


def _table(fields: dict[str, FieldInfo], prefix: str) -> str:
    rows = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{prefix}{name}`", _type(field), _default(field), meaning(field))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _type(field: FieldInfo) -> str:
    return " ".join([_named(field.annotation), *_limits(field.metadata)])


def _named(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([_named(arguments[0]), *_limits(arguments[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(_named(part) for part in arguments)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"list of {_named(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: " + ", ".join(_named(part) for part in arguments)
    if origin is dict:
        return f"{_named(arguments[1])} for each name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "block"
    return _NAMES.get(annotation, "any")


def _limits(metadata: Any) -> list[str]:
    """The ranges among a type's annotations, which may be bundled in a Field."""
    plain = [limit for one in metadata for limit in (one.metadata if isinstance(one, FieldInfo) else [one])]
    limits = [f"{sign}{getattr(one, name):g}" for one in plain for name, sign in _SIGNS.items() if hasattr(one, name)]
    return [" and ".join(limits)] if limits else []


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see there"
    return f"`{_written(value)}`"


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_written(item) for item in value)}]"
    return str(value)


def _paragraph(kind: type[BaseModel]) -> str:
    return " ".join((kind.__doc__ or "").split())
