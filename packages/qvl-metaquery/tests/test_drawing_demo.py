"""The demo: what is drawn and judged in it, a short one whole, and over five seeds its bars."""

import json
from pathlib import Path

import numpy as np
import pytest

from qvl_core.demo_testing import demos, missed
from qvl_data.example.digits import arrays, indices
from qvl_metaquery.demo import Size, demo, ring, source
from qvl_metaquery.demo_report import BARS
from qvl_metaquery.judge import grey, nearest, real


def test_in_the_controls_nothing_stays_where_it_was() -> None:
    for count, seed in ((100, 0), (20, 3)):
        other = ring(count, seed)
        assert sorted(other) == list(range(count))
        assert all(place != theirs for place, theirs in enumerate(other))


def test_a_picture_as_it_is_shown_is_still_read_as_what_it_is() -> None:
    numbers = indices("test")[:40]
    known, digits = real("train")
    assert source(numbers[0]).size == (64, 64)
    read = nearest(grey([source(number) for number in numbers]), known, digits)
    assert np.mean(read == arrays()[1][numbers]) > 0.95


def test_a_short_demo_leaves_its_page_and_figures_and_says_what_it_missed(tmp_path: Path) -> None:
    values = demo(tmp_path, 0, Size(base=2, draw=3, edit=2, each=2, inverted=6))
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert written["complete"]
    for name in BARS:
        assert isinstance(written[name], float), name
    assert written["bars"].startswith("recognised >= 0.97, diversity >= 0.7, i2i_success >= 0.9")
    assert {"recognised", "i2i_success"} <= set(written["missed"].split(", "))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("a handwritten seven: ", "What guidance trades", "step 20", "Stage two, from pictures"):
        assert words in page, words
    assert demo(tmp_path, 0) == written == json.loads(json.dumps(values))  # a finished one is left alone


@pytest.mark.slow
def test_the_bars_of_drawing_over_five_seeds(tmp_path: Path) -> None:
    assert not missed(demos("qvl_metaquery", tmp_path, range(5)), BARS)
