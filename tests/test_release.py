"""The release check finds what the workspace hides: a range that shuts out the sibling it would be released with."""

import sys
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tools.release import closure, oldest_allowed, read_packages, resolve, wheel

ROOT = Path(__file__).parents[1]


def make_wheel(folder: Path, name: str, version: str, requires: str = "") -> Path:
    """The smallest wheel there is: metadata alone."""
    path = wheel(folder, name, Version(version))
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_range_that_shuts_out_the_sibling_is_found(tmp_path: Path) -> None:
    sft = make_wheel(tmp_path, "qvl-sft", "0.1.0", "qvl-data>=0.1,<0.2")
    inside = make_wheel(tmp_path, "qvl-data", "0.1.7")
    outside = make_wheel(tmp_path, "qvl-data", "0.2.0")
    assert resolve([sft, inside], Path(sys.executable), "--no-index") is None
    conflict = resolve([sft, outside], Path(sys.executable), "--no-index")
    assert conflict is not None
    assert "qvl-data" in conflict


@pytest.mark.parametrize(
    ("released", "oldest"),
    [
        ([], "1.3.0"),  # no release yet: the checkout's version
        (["1.1.0", "1.2.0", "1.3.0"], "1.1.0"),
        (["0.9.0", "1.2.0"], "1.2.0"),
        (["0.9.0", "2.0.0"], "1.3.0"),  # releases, none in the range
        (["1.10.0", "1.9.0"], "1.9.0"),  # versions, not strings
    ],
)
def test_oldest_allowed(released: list[str], oldest: str) -> None:
    found = oldest_allowed(SpecifierSet(">=1,<2"), map(Version, released), Version("1.3.0"))
    assert found == Version(oldest)


def test_siblings_are_read_from_this_workspace() -> None:
    packages = read_packages(ROOT)
    assert closure(packages["qvl-core"], packages) == set()
    assert closure(packages["qvl-sft"], packages) >= {"qvl-core", "qvl-data"}
    assert all(range_ for package in packages.values() for range_ in package.siblings.values()), "a range is missing"
