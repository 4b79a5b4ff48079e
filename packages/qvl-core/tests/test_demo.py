"""The folder of a demo."""

import pytest

from qvl_core.demo import Bar, judged, take_up
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


def test_another_choice_is_another_demo(tmp_path):
    out = tmp_path / "demo"
    assert take_up("qvl-core", out, 3, coloured=True) is None
    assert take_up("qvl-core", out, 3, coloured=True) is None
    with pytest.raises(BadInput, match="holds the demo of seed 3, coloured True; choose another folder"):
        take_up("qvl-core", out, 3, coloured=False)


def test_other_files_are_not_written_into(tmp_path):
    (tmp_path / ".hidden").touch()
    (tmp_path / "photo.png").touch()
    with pytest.raises(BadInput, match="holds other files"):
        take_up("qvl-core", tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "photo.png"]


def test_a_result_says_its_bars_and_which_were_missed():
    bars = {"accuracy": Bar(0.92), "shuffled": Bar(0.2, at_most=True), "seconds": Bar(240, at_most=True)}
    said = "accuracy >= 0.92, shuffled <= 0.2, seconds <= 240"
    assert judged({"accuracy": 0.92, "shuffled": 0.2, "seconds": 240.0}, bars) == {"bars": said, "missed": ""}
    found = judged({"accuracy": 0.919, "shuffled": 0.1, "seconds": 240.1}, bars)
    assert found == {"bars": said, "missed": "accuracy, seconds"}
    assert judged({"accuracy": float("nan"), "shuffled": 0, "seconds": 0}, bars)["missed"] == "accuracy"


def test_a_single_seed_may_lie_below_a_bar():
    assert Bar(0.92).holds(0.901, slack=0.02)
    assert not Bar(0.92).holds(0.899, slack=0.02)
    assert Bar(0.6, at_most=True).holds(0.619, slack=0.02)
    assert not Bar(0.6, at_most=True).holds(0.621, slack=0.02)
