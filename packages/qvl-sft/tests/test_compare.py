"""`qvl-sft compare`: which of two is better, how sure that is, and on which samples they differ."""

import html
import json
import re
from pathlib import Path

import pytest
from command import files, qvl_sft
from scripted import answering, cut, moved, refused, result

from qvl_core.errors import BadInput
from qvl_sft.compare import Pairs, better, contest, paired
from qvl_sft.compare_report import heading, verdict
from qvl_sft.figures import scored
from qvl_sft.metrics import tallies
from qvl_sft.prediction import Prediction, read_predictions


def answers(text: str, loss: float = 1.0) -> list[Prediction]:
    """A sample for each letter, "a" is right."""
    letters = enumerate(text)
    said = [Prediction("test", str(i), "?", "a", letter, letter == "a", loss=loss, labels=1) for i, letter in letters]
    return scored(said, tallies(said, ["exact_match"]))


def test_a_contest_counts_the_samples_on_which_they_differ() -> None:
    pairs = paired(answers("aabbbbbbbb"), answers("abaaaaaaab", loss=2.0))["test"]
    found = contest(pairs, ["exact_match"])
    match, loss = found["exact_match"], found["loss"]
    assert (match.a, match.b, match.difference) == pytest.approx((0.2, 0.8, 0.6))
    assert (match.a_better, match.b_better) == (1, 7)
    assert match.p == pytest.approx(18 / 256)
    assert match.low < 0.6 < match.high <= 1
    assert (loss.a_better, loss.b_better) == (10, 0)  # of the loss, less is better
    assert better(pairs, "exact_match") == ([1], [2, 3, 4, 5, 6, 7, 8])
    assert heading("A", pairs, [1], "exact_match") == "A right, B wrong"
    assert "no more than chance" in verdict("exact_match", match, pairs)


def test_a_large_difference_is_more_than_chance_and_none_is_none() -> None:
    pairs = paired(answers("b" * 20), answers("a" * 20))["test"]
    said = verdict("exact_match", contest(pairs, ["exact_match"])["exact_match"], pairs)
    assert said.startswith("B is ahead by exact_match, 1.000 against 0.000 on 20 samples: more than chance explains.")
    same = paired(answers("ab"), answers("ab"))["test"]
    found = contest(same, ["exact_match"])["exact_match"]
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert verdict("exact_match", found, same).startswith("A and B are equal")


def test_samples_of_one_alone_are_left_out_and_counted() -> None:
    found = paired(answers("aab"), answers("ab"))["test"]
    assert (len(found.a), found.only_a, found.only_b) == (2, 1, 0)
    twice = [*answers("a"), *answers("b")]  # one id, two samples
    assert [p.answer for p in paired(twice, twice)["test"].b] == ["a", "b"]


def test_a_comparison_takes_models_and_folders_of_evaluations(untrained: Path, sets: Path, tmp_path: Path) -> None:
    data = str(sets / "boxes.parquet")
    with answering(moved):
        first = qvl_sft("evaluate", str(untrained), data, "--metric", "iou", "--out", str(tmp_path / "first"))
    assert first.code == 0, first.err
    with answering(lambda reference, _: reference):
        done = qvl_sft(
            "compare", str(tmp_path / "first"), str(untrained), data, "--metric", "iou", "--out", str(tmp_path / "out")
        )
    assert done.code == 0, done.err
    assert re.search(r"iou +│ 0\.\d{3} │ 1\.000 │ \+0", done.out)
    figures = result(tmp_path / "out")
    assert (figures["test_iou_b"], figures["test_iou_a_better"]) == (1.0, 0)
    assert figures["test_iou_a"] == result(tmp_path / "first")["test_iou"]
    assert 0 < figures["test_iou_difference_low"] < figures["test_iou_difference"] < figures["test_iou_difference_high"]
    assert figures["test_loss_difference"] == pytest.approx(0, abs=1e-6)  # it is one model
    differing = sum(p.scores["iou"] != 1 for p in read_predictions(tmp_path / "out/a"))
    assert figures["test_iou_b_better"] == differing
    page = html.unescape((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert "B is ahead by iou" in page
    assert page.count("stroke: var(--c4); stroke-dasharray") >= page.count("<img") > 0  # a box of B on each picture
    assert {"result.json", "report.html", "a/predictions.jsonl", "b/predictions.jsonl"} <= set(files(tmp_path / "out"))


def test_two_evaluations_need_no_model_and_no_data(untrained: Path, sets: Path, tmp_path: Path) -> None:
    data = str(sets / "captions.jsonl")
    for name, answer in (("one", cut), ("two", lambda reference, number: reference if number % 2 else "")):
        with answering(answer):
            done = qvl_sft("evaluate", str(untrained), data, "--samples", "20", "--out", str(tmp_path / name))
        assert done.code == 0, done.err
    metrics = ["--metric", "rougeL", "--metric", "exact_match", "--out", str(tmp_path / "out")]
    done = qvl_sft("compare", str(tmp_path / "one"), str(tmp_path / "two"), *metrics)
    assert done.code == 0, done.err
    page = html.unescape((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert "A better by rougeL" in page
    assert "这张图片上是什么？" in page
    assert result(tmp_path / "out")["test_exact_match_b"] == pytest.approx(0.5, abs=0.2)


def test_what_cannot_be_compared(untrained: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    refused(qvl_sft("compare", str(untrained), str(untrained), *out), "holds no predictions.jsonl; name DATA to answer")
    with pytest.raises(BadInput, match="no sample in common"):
        paired(answers("a"), [])
    other = [Prediction("test", "0", "?", "b", "b", True)]
    with pytest.raises(BadInput, match="sample 0 has two references"):
        paired(answers("a"), other)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/predictions.jsonl").write_text(json.dumps({"text": "a"}) + "\n", encoding="utf-8")
    refused(qvl_sft("compare", str(tmp_path / "old"), str(untrained), *out), "is not what evaluate writes")
    assert better(Pairs([], []), "exact_match") == ([], [])


def test_options_that_would_do_nothing(untrained: Path, sets: Path, tmp_path: Path) -> None:
    data, out = str(sets / "captions.jsonl"), ["--out", str(tmp_path / "out")]
    for name in ("one", "two"):
        with answering(cut):
            made = qvl_sft("evaluate", str(untrained), data, "--samples", "2", "--out", str(tmp_path / name))
        assert made.code == 0, made.err
    both = (str(tmp_path / "one"), str(tmp_path / "two"))
    done = qvl_sft("compare", *both, "--samples", "3", "--quant", "nf4", "--split", "train", *out)
    refused(done, "--quant, --samples, --split: the answers in", "are compared as they are; name DATA")
    done = qvl_sft("compare", *both, data, "--base", "tiny", "--max-new-tokens", "3", *out)
    refused(done, "--base, --max-new-tokens: the answers in", "compared as they are; leave it out.")
    assert qvl_sft("compare", *both, data, "--split", "test", *out).code == 0  # where its pictures are found
    refused(qvl_sft("compare", *both, *out), "is already there; choose another --out, or move it aside with --fresh")
    assert qvl_sft("compare", *both, *out, "--fresh").code == 0
    assert {"one", "out", "out.old-1", "two"} == {path.name for path in tmp_path.iterdir()}
