"""The demo: what it counts as right, and over five seeds its bars."""

import json
from pathlib import Path

import pytest

from qvl_core.demo_testing import demos, missed
from qvl_mdlm.canvas import MASK
from qvl_mdlm.demo import PHRASINGS, Size, demo, digit_of, is_right, sentences
from qvl_mdlm.demo_report import BARS


def test_right_is_a_phrasing_letter_for_letter_with_the_right_digit() -> None:
    sample = sentences("test", 0)[0]
    digit = digit_of(sample)
    other = str((int(digit) + 1) % 10)
    assert all(is_right(phrasing.format(digit), sample) for phrasing in PHRASINGS)
    assert is_right(sample.messages[-1].text, sample)
    for wrong in (PHRASINGS[0].format(other), f"It is a {digit}", f"The digit is a {digit}.", digit, ""):
        assert not is_right(wrong, sample)


def test_every_phrasing_is_as_frequent_as_chance_has_it() -> None:
    texts = [sample.messages[-1].text for sample in sentences("train", 3)]
    for phrasing in PHRASINGS:
        start = phrasing.partition("{}")[0]
        assert 0.2 < sum(text.startswith(start) for text in texts) / len(texts) < 0.3


def test_a_short_demo_leaves_its_page_and_figures_and_says_what_it_missed(tmp_path: Path) -> None:
    values = demo(tmp_path, 0, Size(base=4, masked=3, test=12))
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    for name in ("exact_accuracy", "full_schedule_accuracy", "shuffled_accuracy", "forwards_per_token"):
        assert isinstance(written[name], float), name
    assert written["complete"]
    assert written["nelbo_before"] > written["nelbo_after"] > 0
    assert written["bars"].startswith("exact_accuracy >= 0.92, schedule_difference <= 0.03")
    assert "exact_accuracy" in written["missed"]
    assert "nelbo_ratio" not in written["missed"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("forward passes per token", "autoregressive base", "pass 1", MASK):
        assert words in page, words
    assert demo(tmp_path, 0) == written == json.loads(json.dumps(values))  # a finished one is left alone


@pytest.mark.slow
def test_the_bars_over_five_seeds(tmp_path: Path) -> None:
    assert not missed(demos("qvl_mdlm", tmp_path, range(5)), BARS, exact=("nelbo_ratio", "seconds"))
