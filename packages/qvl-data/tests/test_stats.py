import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import qvl_data.stats as room
from qvl_data.cli import app
from qvl_data.dataset import Dataset
from qvl_data.stats import COUNTS, NUMBERS, stats
from qvl_data.stats.script import script
from qvl_data.stats.sketch import Distribution, Tally

from .broken import lines, qvl, shown
from .chats import file_of, picture

NUMBER = st.one_of(st.integers(0, 10**7), st.floats(0, 10**7, allow_nan=False))


def run(*args: Any, code: int = 0) -> None:
    assert app.run([str(arg) for arg in args]) == code


def distribution(values: list[float]) -> Distribution:
    one = Distribution()
    for value in values:
        one.add(value)
    return one


def tally(values: list[str], limit: int = 10_000) -> Tally:
    one = Tally(limit)
    for value in values:
        one.add(value)
    return one


# --- sketches ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(NUMBER, min_size=1, max_size=60))
@example([0, 3e-176])
def test_a_histogram_holds_every_value(values):
    histogram = distribution(values).summary()
    assert (histogram.minimum, histogram.maximum) == (min(values), max(values))
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    assert histogram.median == sorted(values)[(len(values) - 1) // 2]
    assert len(histogram.edges) == len(histogram.counts) + 1 <= 40
    assert list(histogram.edges) == sorted(set(histogram.edges))
    assert histogram.edges[0] <= min(values)
    assert histogram.edges[-1] >= max(values)
    for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        last = high == histogram.edges[-1]
        assert count == sum(low <= value < high or (last and value == high) for value in values)


def test_bins_are_round():
    assert distribution([1, 2, 2, 5]).summary().edges == (1, 2, 3, 4, 5, 6)
    assert distribution([3, 700, 9000]).summary().edges == (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)[2:]  # fmt: skip  # noqa: E501
    assert distribution([0.31, 0.99]).summary().edges == tuple(round(0.3 + i * 0.05, 2) for i in range(15))
    assert distribution([7.5]).summary().counts == (1,)
    assert Distribution().summary().count == 0


@given(st.lists(st.lists(NUMBER, max_size=20), max_size=5))
def test_distributions_merge_to_that_of_all(parts):
    whole, merged = distribution([value for part in parts for value in part]), Distribution()
    for part in map(distribution, parts):
        merged.merge(part)
    assert merged.summary() == whole.summary()


def test_too_many_numbers_are_rounded_to_three_digits_in_any_order(monkeypatch):
    monkeypatch.setattr("qvl_data.stats.sketch.NUMBERS", 1000)
    values = [float(value) for value in range(1, 100_000, 7)]
    whole = distribution(values)
    assert len(whole.counts) < 2000
    random.Random(0).shuffle(values)
    merged = distribution(values[:500])  # not yet rounded
    merged.merge(distribution(values[500:]))
    assert merged.summary() == whole.summary()
    assert whole.summary().maximum == 99_996
    assert whole.summary().median == pytest.approx(50_000, rel=0.005)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 30).map(str), max_size=40), max_size=6), st.integers(1, 12))
def test_frequent_values_survive_in_a_small_tally(parts, limit):
    true = Counter(value for part in parts for value in part)
    merged = Tally(limit)
    for part in parts:
        merged.merge(tally(part, limit))
    assert merged.total == true.total()
    assert len(merged.counts) <= limit
    assert merged.missed <= true.total() / limit
    for value, count in true.items():
        assert count - merged.missed <= merged.counts.get(value, 0) <= count
    if len(true) <= limit:
        assert merged.counts == true
        assert merged.summary(3).distinct == len(true)


def test_counts_say_how_even_they_are():
    assert tally(["a"] * 5).summary(2).entropy == 0
    assert tally(["a", "b"] * 5).summary(2).entropy == 1
    counts = tally(["b"] * 9 + ["a"]).summary(1)
    assert (counts.top, counts.largest, counts.distinct) == ((("b", 9),), 0.9, 2)
    assert counts.entropy == pytest.approx(0.469, abs=1e-3)  # bits of a coin of 0.9
    assert tally(list("bac")).summary(3).top == (("a", 1), ("b", 1), ("c", 1))  # alphabetical where equal
    assert tally([]).summary(3).entropy is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("What is this?", "latin"),
        ("Où est-ce ?", "latin"),
        ("这是什么？", "han (Chinese)"),
        ("这是 iPhone 吗？", "han (Chinese)"),
        ("これは何ですか", "kana (Japanese)"),
        ("東京都千代田区の写真", "kana (Japanese)"),
        ("이것은 무엇입니까?", "hangul (Korean)"),
        ("표의 合計를 구하세요", "hangul (Korean)"),
        ("Что это?", "cyrillic"),
        ("ما هذا؟", "arabic"),
        ("यह क्या है", "devanagari"),
        ("ⴰⵣⵓⵍ", "other"),
        ("1 + 1 = 2 ✓", "none"),
        ("", "none"),
    ],
)
def test_scripts(text, name):
    assert script(text) == name


# --- data sets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "wide.png").write_bytes(file_of(picture(640, 320)))
    (tmp_path / "tall.jpg").write_bytes(file_of(picture(100, 400), "JPEG"))
    rows = [
        {**shown("wide.png"), "id": "1"},
        {**shown("tall.jpg"), "id": "2"},
        {**shown("gone.jpg"), "id": "3"},
        b"{",
        qvl(id="4"),
    ]
    return lines(tmp_path, *rows)


def test_the_figures_of_a_data_set(photos):
    result = stats(Dataset(photos, format="openai"))
    assert result.samples == 3
    assert result.same_text == 2
    numbers, counts = result.numbers, result.counts
    assert (numbers["width"].minimum, numbers["width"].maximum) == (100, 640)
    assert (numbers["aspect"].minimum, numbers["aspect"].maximum) == (2, 4)
    assert (numbers["megapixels"].minimum, numbers["megapixels"].maximum) == (0.04, 0.205)
    assert (numbers["image_tokens"].minimum, numbers["image_tokens"].maximum) == (4 * 16, 20 * 10)
    assert numbers["images"].counts == (3,)
    assert numbers["turns"].mean == 2
    assert numbers["question_characters"].mean == len("What is this?")
    assert counts["answer"].top == (("A cat.", 3),)
    assert counts["first_word"].top == (("A", 3),)
    assert counts["role"].top == (("assistant", 3), ("user", 3))
    assert counts["picture_format"].top == (("JPEG", 1), ("PNG", 1))
    assert counts["unread"].top == (("json", 1), ("media_missing", 1), ("openai", 1))
    assert counts["license"].top == (("(not said)", 3),)
    assert "tokens" not in numbers
    assert set(numbers) <= set(NUMBERS)
    assert set(counts) <= set(COUNTS)


def test_steps_and_workers_change_nothing(tmp_path, monkeypatch):
    rows = [qvl(id=str(i), messages=[qvl()["messages"][0], answer(f"It is {i % 7}.")]) for i in range(50)]
    data = {"train": Dataset(lines(tmp_path, *rows)), "test": Dataset(lines(tmp_path, *rows[:9], name="test.jsonl"))}
    whole = stats(data)
    assert stats(data, workers=2) == whole
    monkeypatch.setattr(room, "STEP", 4)
    assert stats(data) == whole
    assert whole.counts["split"].top == (("train", 50), ("test", 9))
    assert whole.counts["answer"].distinct == 7


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "parts": [{"type": "text", "text": text}]}


def test_long_answers_take_little_memory_and_stay_apart(tmp_path):
    rows = [qvl(id=str(i), messages=[qvl()["messages"][0], answer("a" * 5000 + str(i % 2))]) for i in range(4)]
    counts = stats(Dataset(lines(tmp_path, *rows))).counts["answer"]
    assert counts.distinct == 2
    assert all(len(value) < 250 for value, _ in counts.top)


def test_embedded_pictures_are_not_read_where_their_size_is_stated(tmp_path):
    run("example", "digits", tmp_path / "digits", "--kind", "digit")
    data = Dataset(tmp_path / "digits", "test")
    result = stats(data)
    assert result.counts["picture_format"].top == (("PNG", 360),)
    assert result.numbers["image_tokens"].mean == 64  # 64 pixels a side are enlarged to 256
    assert "picture_bytes" not in result.numbers


def test_tokens_with_a_model(tmp_path, processor):
    from qvl_data.chat import length

    data = Dataset(lines(tmp_path, qvl()))
    result = stats(data, processor)
    assert result.numbers["tokens"].mean == length(data[0], processor)


def test_json_and_tables(photos, capsys):
    run("stats", photos, "--json", "--from-format", "openai", "--top", "2")
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "qvl.stats/1"
    assert told["source"] == str(photos)
    assert told["counts"]["unread"]["top"] == [["json", 1], ["media_missing", 1]]
    run("stats", photos, "--from-format", "openai")
    shown = capsys.readouterr().out
    assert "3 samples, 2 of them (66.7%) with the text of an earlier one" in shown
    assert "answers: all 3 A cat." in shown
    run("stats", photos.parent / "gone", code=2)


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    rows = [qvl(id=str(i), messages=[qvl()["messages"][0], answer(f"\x1b[2J\n{i}")]) for i in range(2)]
    run("stats", lines(tmp_path, *rows))
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "\\x1b[2J\\n0" in shown
