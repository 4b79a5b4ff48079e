"""Release check: can each wheel be installed with freshly built siblings, the newest and the oldest its ranges allow?

`uv lock` and `uv sync` take siblings from the workspace whatever the range says; only built wheels tell. Each package
is resolved twice, its siblings always given as wheel files, third-party packages from the index:

- with every sibling as it stands in the checkout, the versions that a release of today would meet;
- with every sibling it names at the oldest released version (tag `qvl-x/v1.2.3`) in the range; while no release of a
  sibling lies in the range, the checkout's version is the oldest.

Then its commands must answer `--help` in a fresh environment. `nox -s release-check` builds dist/ and runs
`python -m tools.release dist`.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

UV = os.environ.get("UV", "uv")


@dataclass(frozen=True)
class Package:
    """One member of the workspace, as its pyproject.toml says."""

    name: str
    version: Version
    siblings: dict[str, SpecifierSet]  # the members it requires, with their ranges
    scripts: tuple[str, ...]


def read_packages(root: Path) -> dict[str, Package]:
    """The workspace's members by name."""
    projects = [tomllib.loads(path.read_text("utf-8"))["project"] for path in root.glob("packages/*/pyproject.toml")]
    names = {project["name"] for project in projects}
    packages = {}
    for project in projects:
        required = [Requirement(line) for line in project["dependencies"]]
        siblings = {requirement.name: requirement.specifier for requirement in required if requirement.name in names}
        scripts = tuple(project.get("scripts", ()))
        packages[project["name"]] = Package(project["name"], Version(project["version"]), siblings, scripts)
    return packages


def closure(package: Package, packages: dict[str, Package]) -> set[str]:
    """The names of all siblings a package needs, directly or not."""
    direct = set(package.siblings)
    return direct.union(*(closure(packages[name], packages) for name in direct))


def oldest_allowed(allowed: SpecifierSet, released: Iterable[Version], current: Version) -> Version:
    """The oldest released version in the range; the checkout's own while there is none."""
    return min((version for version in released if allowed.contains(version)), default=current)


def released_versions(root: Path, name: str) -> list[Version]:
    """The versions of a package that carry a tag."""
    tags = subprocess.run(
        ["git", "tag", "--list", f"{name}/v*"], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split()
    return [Version(tag.rpartition("/v")[2]) for tag in tags]


def wheel(folder: Path, name: str, version: Version) -> Path:
    return folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


def build_release(root: Path, name: str, version: Version, out: Path) -> Path:
    """Build the wheel of a released version from its tag."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "tree.tar")
        subprocess.run(["git", "archive", "--output", archive, f"{name}/v{version}"], cwd=root, check=True)
        tree = Path(folder, "tree")
        with tarfile.open(archive) as tar:
            tar.extractall(tree, filter="data")
        command = [UV, "build", "--quiet", "--wheel", "--package", name, "--out-dir", str(out.absolute())]
        subprocess.run(command, cwd=tree, check=True)
    built = wheel(out, name, version)
    if not built.exists():
        sys.exit(f"tag {name}/v{version}: its pyproject.toml holds another version; a tag is never moved or misnamed")
    return built


def resolve(wheels: Iterable[Path], python: Path, *options: str) -> str | None:
    """Why these wheels cannot be installed together, or None if they can; nothing is installed."""
    command = [UV, "pip", "install", "--dry-run", "--python", str(python), *options, *map(str, wheels)]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.stderr if run.returncode else None


def call_help(package: Package, wheels: Iterable[Path], environment: Path) -> str | None:
    """Install the wheels into a fresh environment; what a command of the package that fails at --help says, or None."""
    subprocess.run([UV, "venv", "--quiet", "--clear", environment], check=True)
    subprocess.run([UV, "pip", "install", "--quiet", "--python", environment, *wheels], check=True)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    for script in package.scripts:
        run = subprocess.run([programs / script, "--help"], capture_output=True, text=True)
        if run.returncode:
            return f"{script} --help exits {run.returncode}\n{run.stderr}"
    return None


def check(root: Path, dist: Path) -> int:
    """Check every package against the wheels in `dist`; return how many cannot be released."""
    packages = read_packages(root)
    environment = root / ".nox" / "release"
    failed = 0
    for package in packages.values():
        newest = {name: packages[name].version for name in closure(package, packages)}
        oldest = newest | {
            name: oldest_allowed(allowed, released_versions(root, name), packages[name].version)
            for name, allowed in package.siblings.items()
        }
        rounds = {"newest": newest} | ({"oldest": oldest} if oldest != newest else {})
        for age, versions in rounds.items():
            wheels = [wheel(dist, package.name, package.version)]
            for name, version in versions.items():
                built = wheel(dist, name, version)
                wheels.append(built if built.exists() else build_release(root, name, version, dist / "released"))
            with_siblings = ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "no sibling"
            print(f"{package.name} {package.version} with {age} {with_siblings}: ", end="", flush=True)
            if conflict := resolve(wheels, Path(sys.executable)):
                failed += 1
                print(f"does not resolve; mend the range in packages/{package.name}/pyproject.toml\n{conflict}")
            elif complaint := call_help(package, wheels, environment):
                failed += 1
                print(complaint)
            else:
                print("resolves, answers --help")
        if package.siblings and oldest == newest:
            print(f"{package.name} {package.version}: no older release of a sibling in its ranges; newest is oldest")
    return failed


if __name__ == "__main__":
    sys.exit(min(check(Path(), Path(sys.argv[1])), 1))
