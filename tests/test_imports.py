"""Imports point down only, start-up stays light, and every package declares what it imports."""

from pathlib import Path

import pytest

from tools.imports import heavy_at_start, read_imports, undeclared, wrong_arrows

ROOT = Path(__file__).parents[1]


def light(module: str) -> bool:
    """Modules that must import without torch: qvl_data, qvl_core outside training and qwen3vl, every command line."""
    package, _, room = module.partition(".")
    if package == "qvl_data":
        return True
    if package == "qvl_core":
        return room.partition(".")[0] not in ("training", "qwen3vl") or room == "qwen3vl.encoded"
    return room in ("", "__main__", "cli", "recipe")


def test_imports_point_down() -> None:
    assert wrong_arrows(read_imports(ROOT)) == []


def test_start_up_loads_no_torch() -> None:
    assert heavy_at_start(read_imports(ROOT), light) == []


def test_packages_declare_what_they_import() -> None:
    assert undeclared(read_imports(ROOT), ROOT) == []


# The checker itself, on a made-up workspace.


def workspace(root: Path, files: dict[str, str]) -> Path:
    """Packages with the given files, such as {"qvl_sft/train.py": "import torch"}; each declares numpy alone."""
    for name, text in files.items():
        package = name.partition("/")[0]
        folder = root / "packages" / package.replace("_", "-")
        path = folder / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        declare(root, package, "numpy>=2")
    return root


def declare(root: Path, package: str, requirement: str, more: str = "") -> None:
    name = package.replace("_", "-")
    project = f'[project]\nname = "{name}"\ndependencies = ["{requirement}"]\n{more}'
    (root / "packages" / name / "pyproject.toml").write_text(project, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "statement", "wrong"),
    [
        ("qvl_sft/train.py", "from qvl_data.chat import encode", False),
        ("qvl_sft/train.py", "from . import recipe", False),
        ("qvl_core/run.py", "import qvl_data", True),
        ("qvl_data/chat.py", "from qvl_sft import recipe", True),
        ("qvl_mdlm/loss.py", "from qvl_sft.loss import nll", True),  # methods never import one another
        ("qvl_mdlm/loss.py", "def f():\n    import qvl_edit", True),  # not even late
        ("qvl_vision/swap.py", "if TYPE_CHECKING:\n    import qvl_sft", True),  # nor for types
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, file: str, statement: str, wrong: bool) -> None:
    found = wrong_arrows(read_imports(workspace(tmp_path, {file: statement})))
    assert bool(found) == wrong
    line = statement.count("\n") + 1
    assert all(f"{file}:{line}: " in sentence for sentence in found)


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import torch", True),
        ("from torch.nn import Linear", True),
        ("try:\n    import peft\nexcept ImportError:\n    pass", True),
        ("def f():\n    import torch", False),
        ("if TYPE_CHECKING:\n    import torch", False),
        ("from .encoded import Encoded", False),
        ("from .model import build", True),  # through a neighbour
        ("from qvl_core import model", True),
        ("from qvl_core.room import name", True),  # through the package's __init__
    ],
)
def test_torch_at_start_up_is_found(tmp_path: Path, statement: str, heavy: bool) -> None:
    files = {
        "__init__.py": "",
        "cli.py": statement,
        "encoded.py": "import numpy",
        "model.py": "import transformers",
        "room/__init__.py": "import torch",
        "room/name.py": "",
    }
    root = workspace(tmp_path, {f"qvl_core/{name}": text for name, text in files.items()})
    found = heavy_at_start(read_imports(root), lambda module: module == "qvl_core.cli")
    assert bool(found) == heavy


def test_an_undeclared_package_is_found(tmp_path: Path) -> None:
    root = workspace(tmp_path, {"qvl_data/media.py": "import numpy, json\nimport PIL.Image\nfrom yaml import load"})
    pillow, yaml = undeclared(read_imports(root), root)
    assert pillow.startswith("packages/qvl-data/src/qvl_data/media.py:2: PIL is imported but not declared")
    assert yaml.startswith("packages/qvl-data/src/qvl_data/media.py:3: yaml is imported but not declared")


def test_a_siblings_extra_counts_as_declared(tmp_path: Path) -> None:
    root = workspace(tmp_path, {"qvl_core/loop.py": "import numpy", "qvl_sft/train.py": "import torch"})
    declare(root, "qvl_core", "numpy", '[project.optional-dependencies]\ntrain = ["torch"]\n')
    assert len(undeclared(read_imports(root), root)) == 1
    declare(root, "qvl_sft", "qvl-core[train]>=0.1")
    assert undeclared(read_imports(root), root) == []
