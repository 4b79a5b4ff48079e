"""The doctor tells the truth about this machine, and survives what it finds."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import psutil
import pytest
from packaging.requirements import Requirement

from qvl_core.doctor import _library, _memory, doctor, requirements


@pytest.fixture(scope="module")
def found():
    return {(one["section"], one["name"]): one for one in json.loads(doctor("qvl_core", as_json=True))}


def test_it_reports_this_machine(found):
    assert found["Machine", "processors"]["value"] == str(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    assert found["Machine", "python"]["value"].startswith(sys.version.split()[0])
    assert found["Libraries", "pydantic"] == {
        "section": "Libraries",
        "name": "pydantic",
        "value": version("pydantic"),
        "fix": "",
    }
    assert ("Extras", "torch") in found


def test_memory_is_at_most_what_the_machine_has():
    assert 0 < float(_memory().split()[0]) <= round(psutil.virtual_memory().total / 2**30, 1)


def test_text_and_json_say_the_same_without_importing_torch(found):
    code = "import sys; from qvl_core.doctor import doctor; print(doctor('qvl_core')); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    for (section, name), one in found.items():
        assert f"\n{section}\n" in f"\n{done.stdout}"
        assert f"  {name} " in done.stdout
        assert one["value"] in done.stdout or name == "disk"  # its free space changes


def test_what_is_missing_comes_with_the_line_that_installs_it():
    requirement = Requirement("a-library-nobody-has>=2.1")
    finding = _library("Libraries", requirement, "qvl-core[train]")
    assert (finding.value, finding.fix) == ("missing, >=2.1 needed", 'uv pip install "qvl-core[train]"')
    assert _library("Extras", requirement, "qvl-core[train]").value == "not installed"


def test_what_is_too_old_comes_with_the_line_that_upgrades_it():
    finding = _library("Libraries", Requirement("pydantic>=99"), "qvl-core")
    assert finding.value == f"{version('pydantic')}, >=99 needed"
    assert finding.fix == 'uv pip install --upgrade "pydantic>=99"'


def test_what_an_extra_adds_is_optional():
    needed, optional = requirements("qvl-core")
    assert optional["torch>=2.11"] == "qvl-core[train]"
    assert "torch>=2.11" not in needed


@pytest.mark.parametrize(
    "broken", ["raise ImportError('libcudart.so.13: cannot open shared object')", "import os; os.abort()"]
)
def test_a_broken_torch_is_a_sentence(tmp_path, monkeypatch, broken):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(broken, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [torch] = [one for one in json.loads(doctor("qvl_core", as_json=True)) if one["section"] == "Devices"]
    assert torch["value"] == "is installed but does not start"
    assert "reinstall" in torch["fix"]
