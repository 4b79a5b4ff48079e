"""What imports what, read from the source without running it: the arrows between packages, torch at start-up,
and third-party packages that are used but not declared. tests/test_imports.py applies it to this workspace.
"""

import ast
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Imports point down only: a package may import those of lower floors, never one of its own floor or above.
FLOORS = (
    {"qvl_core"},
    {"qvl_data"},
    {"qvl_vision"},
    {"qvl_sft", "qvl_mdlm", "qvl_metaquery", "qvl_edit"},
    {"qvl_studio"},
)
HEAVY = {"torch", "torchvision", "transformers", "peft", "accelerate", "diffusers"}


@dataclass(frozen=True)
class Import:
    """One import statement's one name."""

    module: str  # who imports, such as qvl_sft.train
    target: str  # what, such as qvl_core.training.loop or torch.nn
    when: Literal["start", "call", "types"]  # at module level, inside a function, under TYPE_CHECKING
    place: str  # file:line


def package_of(module: str) -> str:
    return module.partition(".")[0]


def read_imports(root: Path) -> list[Import]:
    """All imports of packages/*/src and apps/*/src."""
    return [
        found
        for source in sorted([*root.glob("packages/*/src"), *root.glob("apps/*/src")])
        for path in sorted(source.rglob("*.py"))
        for found in _file_imports(path, path.relative_to(source), path.relative_to(root))
    ]


def _file_imports(path: Path, relative: Path, shown: Path) -> Iterator[Import]:
    names = relative.with_suffix("").parts
    is_package = names[-1] == "__init__"
    names = names[:-1] if is_package else names

    def visit(node: ast.AST, when: Literal["start", "call", "types"]) -> Iterator[Import]:
        place = f"{shown.as_posix()}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (Import(".".join(names), alias.name, when, place) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = names[: len(names) - node.level + is_package] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (Import(".".join(names), f"{base}.{alias.name}", when, place) for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for child in ast.iter_child_nodes(node):
                yield from visit(child, "types" if when == "types" else "call")
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, "types")
            for child in node.orelse:
                yield from visit(child, when)
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child, when)

    yield from visit(ast.parse(path.read_text("utf-8"), str(path)), "start")


def wrong_arrows(imports: Iterable[Import]) -> list[str]:
    """Imports between packages that do not point down, one sentence each."""
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    return [
        f"{found.place}: {package_of(found.module)} must not import {package_of(found.target)}; "
        "move what both need to a lower floor"
        for found in imports
        if package_of(found.target) in floor
        and package_of(found.module) != package_of(found.target)
        and floor[package_of(found.target)] >= floor[package_of(found.module)]
    ]


def heavy_at_start(imports: Iterable[Import], light: Callable[[str], bool]) -> list[str]:
    """Light modules whose import would load torch or its kin, directly or through other modules of ours."""
    at_start: dict[str, list[Import]] = {}
    for found in imports:
        at_start.setdefault(found.module, []).extend([found] if found.when == "start" else [])
    ours = {package_of(module) for module in at_start}

    def complaint(start: str) -> str | None:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            name = waiting.pop()
            # Importing a.b.c runs a and a.b first; a name that is no module is a member of its parent.
            parts = name.split(".")
            for module in [".".join(parts[: end + 1]) for end in range(len(parts))]:
                if module in seen:
                    continue
                seen.add(module)
                for found in at_start.get(module, []):
                    if package_of(found.target) in HEAVY:
                        return f"{found.place}: importing {start} loads {found.target}; import it inside the function"
                    if package_of(found.target) in ours:
                        waiting.append(found.target)
        return None

    return [said for module in sorted(filter(light, at_start)) if (said := complaint(module))]


def undeclared(imports: Iterable[Import], root: Path) -> list[str]:
    """Third-party packages that are imported but in neither the dependencies nor an extra of the importing package."""
    files = [*root.glob("packages/*/pyproject.toml"), *root.glob("apps/*/pyproject.toml")]
    projects = {project["name"]: project for project in (tomllib.loads(f.read_text("utf-8"))["project"] for f in files)}
    allowed = {name: _declared(name, projects) for name in projects}
    distributions = packages_distributions()
    complaints = []
    for found in imports:
        top = package_of(found.target)
        names = {canonicalize_name(name) for name in distributions.get(top, [top])}
        package = canonicalize_name(package_of(found.module))
        if found.when != "types" and top not in sys.stdlib_module_names and not names & allowed[package]:
            complaints.append(
                f"{found.place}: {top} is imported but not declared; add it to {package}'s pyproject.toml"
            )
    return complaints


def _declared(name: str, projects: dict[str, Any]) -> set[str]:
    """What a package may import: itself, its dependencies and extras, and what an extra of a sibling brings.

    The last because qvl-core[train] is how the methods ask for torch and all that goes with it.
    """
    lines = [*projects[name]["dependencies"], *chain(*projects[name].get("optional-dependencies", {}).values())]
    required = [Requirement(line) for line in lines]
    brought = [
        Requirement(line)
        for sibling in required
        if sibling.name in projects
        for extra in sibling.extras
        for line in projects[sibling.name]["optional-dependencies"][extra]
    ]
    return {name} | {canonicalize_name(requirement.name) for requirement in required + brought}
