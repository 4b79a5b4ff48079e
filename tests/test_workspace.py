"""The workspace is complete: the committed lock covers what is declared, and each package can be released alone."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qvl_core.doctor import requirements

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
LOCK = (ROOT / "requirements.lock").read_text("utf-8")


def declared(folder: Path) -> list[Requirement]:
    """What a pyproject.toml asks for: dependencies, extras and groups."""
    table = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    lists = [
        table["project"]["dependencies"],
        *table["project"].get("optional-dependencies", {}).values(),
        *table.get("dependency-groups", {}).values(),
    ]
    return [Requirement(line) for lines in lists for line in lines if isinstance(line, str)]


@pytest.mark.parametrize("folder", [ROOT, *PACKAGES], ids=lambda folder: folder.name)
def test_the_lock_covers_what_is_declared(folder: Path) -> None:
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", LOCK, re.MULTILINE):
        locked.setdefault(name, []).append(version)
    members = {package.name for package in PACKAGES}
    third_party = [requirement for requirement in declared(folder) if requirement.name not in members]
    missing = [
        str(requirement)
        for requirement in third_party
        if not any(requirement.specifier.contains(v) for v in locked.get(canonicalize_name(requirement.name), []))
    ]
    assert missing == [], "run `uv run nox -s lock` and commit requirements.lock"


def test_the_lock_holds_hashes_and_no_addresses() -> None:
    assert "://" not in LOCK
    pins = LOCK.count("==")
    assert LOCK.count("--hash=sha256:") >= pins > 50


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_a_package_can_be_released_alone(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert [name for name in ("README.md", "CHANGELOG.md", "LICENSE", "tests") if not (folder / name).exists()] == []
    assert f"## {project['version']}" in (folder / "CHANGELOG.md").read_text("utf-8")
    assert project["license-files"] == ["LICENSE"]
    assert f"/packages/{folder.name}/ " in (ROOT / ".github" / "CODEOWNERS").read_text("utf-8")


def test_the_doctor_needs_the_extras_that_a_package_asks_its_sibling_for() -> None:
    needed, optional = requirements("qvl-sft")
    assert needed["torch>=2.11"] == "qvl-core[train]"
    assert optional["wandb>=0.22"] == "qvl-core[wandb]"
