"""The demo: what counts as right, a short one whole, and over five seeds its bars."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvl_core.demo_testing import demos, missed
from qvl_data.example.recoloured import CHANGES, inked
from qvl_edit.demo import Size, another, demo
from qvl_edit.demo_report import BARS
from qvl_edit.outcomes import CLOSE, outcomes


def test_right_is_nearest_to_what_was_asked_and_close_to_it() -> None:
    source = inked(7)
    edits = [change.make(source) for change in CHANGES.values()]
    off = Image.fromarray((np.asarray(edits[0], int) * 0 + 128).astype(np.uint8))
    drawn = [*edits, source, edits[1], off]
    found = outcomes(drawn, [0, 1, 2, 2, 0, 0], [edits] * 6, [source] * 6)
    assert found.right.tolist() == [True, True, True, False, False, False]
    assert found.errors[:3].tolist() == [0, 0, 0]
    pixels = [np.asarray(one, float) / 127.5 - 1 for one in (edits[0], edits[1])]
    assert found.errors[4] == pytest.approx(np.abs(pixels[0] - pixels[1]).mean())


def test_what_is_nearest_but_far_is_not_right() -> None:
    black, grey, white = (Image.new("RGB", (4, 4), (value,) * 3) for value in (0, 30, 255))
    found = outcomes([grey], [0], [[black, white]], [white])
    assert found.errors[0] == pytest.approx(2 * 30 / 255)
    assert found.errors[0] > CLOSE
    assert not found.right[0]
    assert found.success == 0


def test_shuffled_instructions_are_as_often_each_others_as_their_own() -> None:
    said = another(40, 3)
    assert np.bincount(said).tolist() == [40, 40, 40]
    assert 0.2 < np.mean([number == place % 3 for place, number in enumerate(said)]) < 0.47


def test_a_short_demo_leaves_its_page_and_figures_and_says_what_it_missed(tmp_path: Path) -> None:
    values = demo(tmp_path, 0, Size(digits=8, steps=3, test=2))
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert written["complete"]
    for name in BARS:
        assert isinstance(written[name], float), name
    assert written["bars"].startswith("success_red >= 0.97, success_invert >= 0.97, success_flip >= 0.97")
    assert {"success_red", "mean_error"} <= set(written["missed"].split(", "))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("make it red: ", "flip left and right: ", "by an instruction at random", "held-out digits"):
        assert words in page, words
    assert demo(tmp_path, 0) == written == json.loads(json.dumps(values))  # a finished one is left alone


@pytest.mark.slow
def test_the_bars_of_editing_over_five_seeds(tmp_path: Path) -> None:
    assert not missed(demos("qvl_edit", tmp_path, range(5)), BARS)
