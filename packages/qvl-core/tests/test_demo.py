"""The folder of a demo."""

import pytest

from qvl_core.demo import take_up
from qvl_core.errors import BadInput
from qvl_core.run import RunFolder


def test_a_demo_is_begun_continued_and_left_alone(tmp_path, capsys):
    out = tmp_path / "demo"
    assert take_up("qvl-core", out, 3) is None
    assert RunFolder(out).read_result()["complete"] is False
    (out / "runs").mkdir()
    assert take_up("qvl-core", out, 3) is None
    with pytest.raises(BadInput, match="holds the demo of seed 3; choose another folder"):
        take_up("qvl-core", out, 4)
    RunFolder(out).write_result({"seed": 3, "complete": True})
    assert take_up("qvl-core", out, 3) == {"seed": 3, "complete": True}
    assert "is finished" in capsys.readouterr().out


def test_other_files_are_not_written_into(tmp_path):
    (tmp_path / ".hidden").touch()
    (tmp_path / "photo.png").touch()
    with pytest.raises(BadInput, match="holds other files"):
        take_up("qvl-core", tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "photo.png"]
