"""Writing registries: adding entries to the file as it stands, and reading the `data_dict` of Qwen's code."""

import ast
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from qvl_core.errors import BadInput

from .job import complete
from .registry import Entry, read

MAX_BYTES = 1 << 20
"""Largest Python file that is looked at."""


def add(file: Path, entries: Mapping[str, Entry]) -> None:
    """Add entries at the end of a registry file, which is made if it is not there; comments stay. Raises BadInput."""
    before = read(file) if file.is_file() else {}
    for name in entries:
        if name in before:
            raise BadInput(f'{file}: "{name}" is already there; choose another name, or change it by hand.')
    text = file.read_text(encoding="utf-8") if file.is_file() else "datasets:\n"
    plain = {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in entries.items()}
    new = _inserted(text, plain)
    with complete(file) as part:
        part.write_text(new or "", encoding="utf-8", newline="\n")
        if new is None or read(part) != {**before, **entries}:
            raise BadInput(f"{file}: cannot be added to; add these lines by hand:\n{_yaml(plain, 2)}")


def relative_to(path: str | Path, folder: Path) -> str:
    """A path from the current folder as one from `folder`; absolute ones stay."""
    path = Path(path)
    return path.as_posix() if path.is_absolute() else Path(os.path.relpath(path, folder)).as_posix()


def read_data_dict(file: Path, folder: Path) -> dict[str, Entry]:
    """The data sets of a `data_dict` (`annotation_path`, `data_path`) in a Python file, which is read, never run.

    folder  of the registry: relative paths, which start at the current folder, become relative to it

    Raises BadInput for what is not written out as plain dicts.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise BadInput(f"{file}: over {MAX_BYTES} bytes; this is no data/__init__.py.")
        tree = ast.parse(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BadInput(f"{file}: there is no such file.") from None
    except SyntaxError as error:
        raise BadInput(f"{file}:{error.lineno}: not Python ({error.msg}).") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise BadInput(f"{file}: cannot be read as Python ({error}).") from None
    assigned: dict[str, ast.expr] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            assigned |= {target.id: statement.value for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            assigned[statement.target.id] = statement.value
    table = assigned.get("data_dict")
    if not isinstance(table, ast.Dict):
        raise BadInput(f"{file}: has no data_dict = {{...}} at its top level.")
    found = {}
    for key, value in zip(table.keys, table.values, strict=True):
        place = f"{file}:{value.lineno}"
        named = assigned.get(value.id, value) if isinstance(value, ast.Name) else value
        name, fields = _literal(key, place), _literal(named, place)
        if not isinstance(name, str) or not isinstance(fields, dict):
            raise BadInput(f"{place}: an entry of data_dict is a name and a dict.")
        found[name] = _entry(name, fields, place, folder)
    return found


def _literal(value: ast.expr | None, place: str) -> Any:
    try:
        return ast.literal_eval(value) if value is not None else None
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise BadInput(f"{place}: not written out as a plain text or dict, and nothing is run; write it out.") from None


def _entry(name: str, fields: dict[Any, Any], place: str, folder: Path) -> Entry:
    unknown = [key for key in fields if key not in ("annotation_path", "data_path")]
    path, root = fields.get("annotation_path"), fields.get("data_path") or None
    if unknown:
        raise BadInput(f'{place}: "{name}" has {unknown[0]!r}, which says nothing to a registry; remove it.')
    if not isinstance(path, str) or not path or not isinstance(root, str | None):
        raise BadInput(f'{place}: "{name}" needs an annotation_path (and may have a data_path), both text.')
    return Entry(
        path=relative_to(path, folder), media_root=relative_to(root, folder) if root else None, format="qwenvl"
    )


def _inserted(text: str, plain: Mapping[str, Any]) -> str | None:
    """The text with the entries at the end of its `datasets`; None if that is not a block with lines of its own."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return text + ("" if text.endswith("\n") or not text else "\n") + "datasets:\n" + _yaml(plain, 2)
    for key, value in root.value:
        if key.value == "datasets":
            lines = text.splitlines()
            if isinstance(value, yaml.MappingNode) and not value.flow_style:
                indent, line = value.value[0][0].start_mark.column, value.end_mark.line
                line += value.end_mark.column > 0  # the text ends without a line break
            elif isinstance(value, yaml.ScalarNode) and not value.value:
                indent, line = 2, key.end_mark.line + 1
            else:
                return None
            while line > key.end_mark.line + 1 and not lines[line - 1].strip():
                line -= 1
            return "\n".join([*lines[:line], _yaml(plain, indent).rstrip("\n"), *lines[line:]]) + "\n"
    return text + ("" if text.endswith("\n") else "\n") + "datasets:\n" + _yaml(plain, 2)


def _yaml(plain: Mapping[str, Any], indent: int) -> str:
    text = yaml.safe_dump(dict(plain), default_flow_style=None, sort_keys=False, allow_unicode=True, width=10_000)
    return "".join(" " * indent + line + "\n" for line in text.splitlines())
