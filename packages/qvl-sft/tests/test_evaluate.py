"""`qvl-sft evaluate` with every metric, by group, judged again; a tiny model computes, what it answers is scripted."""

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import files, qvl_sft
from scripted import KINDS, LONG, answering, cut, moved, refused, result

from qvl_core.errors import BadInput
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training.world import World
from qvl_data.answers import references_of
from qvl_data.convert import write_samples
from qvl_data.dataset import Dataset
from qvl_data.example import samples
from qvl_data.sources import Mixture, read_sources
from qvl_sft.batch import collation
from qvl_sft.evaluate import Evaluation
from qvl_sft.figures import Estimate, figures_of, scored, worst
from qvl_sft.gallery import caption
from qvl_sft.judge import table
from qvl_sft.metrics import METRICS, Metric, tallies
from qvl_sft.prediction import Prediction, read_predictions
from qvl_sft.recipe import RECIPE
from qvl_sft.references import fields_of
from qvl_sft.report import confusion
from qvl_sft.trained import load_trained


@pytest.fixture(scope="module")
def found_boxes(untrained: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("boxes") / "evaluation"
    metrics = [word for name in ("iou", "box_recall_50", "box_precision_50") for word in ("--metric", name)]
    with answering(moved):
        done = qvl_sft("evaluate", str(untrained), str(sets / "boxes.parquet"), *metrics, "--out", str(out))
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def captioned(untrained: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("captions") / "evaluation"
    metrics = [word for name in ("cider", "rougeL", "bleu", "anls") for word in ("--metric", name)]
    with answering(cut):
        done = qvl_sft(
            "evaluate", str(untrained), str(sets / "captions.jsonl"), *metrics, "--group-by", "kind", "--out", str(out)
        )
    assert done.code == 0, done.err
    assert re.search(r"rougeL +│ all +│ +0\.\d{4} │ 0\.\d{3} to", done.out)
    return out


# Figures


def test_boxes_are_found_and_drawn(found_boxes: Path) -> None:
    figures, predictions = result(found_boxes), read_predictions(found_boxes)
    assert len(predictions) == figures["test_samples"] == 40
    stated = [json.loads(p.reference) for p in predictions]
    total = sum(len(boxes) if isinstance(boxes, list) else 1 for boxes in stated)
    halved = sum(int(p.id[-3:]) % 3 == 0 for p in predictions)
    assert figures["test_box_recall_50"] <= 1 - halved / total
    assert figures["test_box_recall_50"] == figures["test_box_precision_50"]  # as many are written as there are
    assert figures["test_boxes_outside"] > 0
    assert figures["test_boxes_unsound"] == 0
    assert figures["test_iou_low"] < figures["test_iou"] < figures["test_iou_high"] < 1
    page = (found_boxes / "report.html").read_text(encoding="utf-8")
    assert page.count("stroke-dasharray") == page.count("<rect") / 2
    assert page.index("iou 0.") < page.index("iou 1.00")  # the worst come first


def test_groups_have_figures_of_their_own(captioned: Path) -> None:
    figures, predictions = result(captioned), read_predictions(captioned)
    for metric in ("cider", "rougeL", "bleu", "anls"):
        for kind in KINDS:
            assert f"test_{metric}/{kind}" in figures
    anls = [p.scores["anls"] for p in predictions if p.fields["kind"] == "写真"]
    assert figures["test_anls/写真"] == pytest.approx(sum(anls) / len(anls))  # type: ignore[arg-type]
    sizes = Counter(p.fields["kind"] for p in predictions)
    whole = sum(figures[f"test_cider/{kind}"] * sizes[kind] for kind in KINDS)
    assert whole == pytest.approx(40 * figures["test_cider"])
    page = html.unescape((captioned / "report.html").read_text(encoding="utf-8"))
    assert "By kind" in page
    assert LONG in page


def test_answers_are_judged_again_without_the_model(captioned: Path, tmp_path: Path) -> None:
    again = qvl_sft(
        "evaluate", str(captioned), "--metric", "anls", "--metric", "rouge1", "--out", str(tmp_path / "again")
    )
    assert again.code == 0, again.err
    figures = result(tmp_path / "again")
    assert figures["test_anls"] == result(captioned)["test_anls"]
    assert figures["test_loss"] == result(captioned)["test_loss"]
    assert "test_rouge1" in figures
    assert [name for name in files(tmp_path / "again") if name.endswith(("png", "jpg"))] == [
        name for name in files(captioned) if name.endswith(("png", "jpg"))
    ]


def test_a_plugin_brings_a_metric(captioned: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from qvl_sft.metrics import register_metric\n\n"
        '@register_metric("brief")\n'
        "def brief(predictions):\n"
        "    return [float(len(p.said) < 10) if p.fields['kind'] == 'photo' else float('nan') for p in predictions]\n",
        encoding="utf-8",
    )
    given = ["--metric", "brief", "--plugin", str(tmp_path / "mine.py"), "--out", str(tmp_path / "out")]
    try:
        done = qvl_sft("evaluate", str(captioned), *given)
    finally:
        METRICS.pop("brief", None)
    assert done.code == 0, done.err
    photos = [p for p in read_predictions(captioned) if p.fields["kind"] == "photo"]
    assert result(tmp_path / "out")["test_brief"] == sum(len(p.answer) < 10 for p in photos) / len(photos)


def test_a_metric_is_computed_once(
    untrained: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(predictions: Sequence[Prediction]) -> list[float]:
        seen.append(len(predictions))
        return [1.0] * len(predictions)

    monkeypatch.setitem(METRICS, "counted", Metric("counted", counted))
    options = ["--metric", "counted", "--group-by", "kind", "--out"]
    with answering(cut):
        done = qvl_sft(
            "evaluate", str(untrained), str(sets / "captions.jsonl"), "--samples", "9", *options, str(tmp_path / "one")
        )
    assert done.code == 0, done.err
    done = qvl_sft("evaluate", str(tmp_path / "one"), *options, str(tmp_path / "two"))
    assert done.code == 0, done.err
    assert seen == [9, 9]
    one, two = (
        {key: value for key, value in result(tmp_path / name).items() if key.startswith("test_")}
        for name in ("one", "two")
    )
    assert one["test_counted/photo"] == 1.0
    assert two == pytest.approx(one)


@pytest.mark.parametrize("name", ["anls", "loss"])
def test_a_plugin_cannot_take_the_name_of_a_figure(captioned: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.py").write_text(
        "from qvl_sft.metrics import register_metric\n\n"
        f'@register_metric("{name}")\n'
        "def mine(predictions):\n"
        "    return [1.0 for p in predictions]\n",
        encoding="utf-8",
    )
    before = dict(METRICS)
    done = qvl_sft("evaluate", str(captioned), "--plugin", str(tmp_path / "mine.py"), "--out", str(tmp_path / "out"))
    refused(done, "mine.py:3", f'the metric "{name}" is there already', "choose another name")
    assert before == METRICS


def test_thinking_is_kept_and_not_judged(untrained: Path, data: Path, tmp_path: Path) -> None:
    with answering(lambda reference, _: f"<think>\nIs it a 3?\n</think>\n\n{reference}"):
        done = qvl_sft(
            "evaluate", str(untrained), str(data / "digits"), "--samples", "6", "--out", str(tmp_path / "out")
        )
    assert done.code == 0, done.err
    assert result(tmp_path / "out")["test_exact_match"] == 1.0
    assert "Is it a 3?" in (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8")


def test_what_two_processes_answer_is_put_together_as_one_answers(untrained: Path, sets: Path, tmp_path: Path) -> None:
    heard: list[Any] = []

    class Half(World):
        """One of two processes; the one that is asked second hears what the first one said."""

        def gather(self, value: Any) -> list[Any]:
            heard.insert(0, value)
            return heard

    model, processor = load_trained(str(untrained))
    lists = {"validation": Mixture(read_sources(f"{sets / 'captions.jsonl'}"), "validation")}
    metrics = ("bleu", "rougeL", "cider")
    measure = Evaluation(lists, processor, collation(processor), metrics, group_by="kind").measure
    cpu = model.device
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with answering(cut), torch.no_grad():
        one = measure(model, World(0, 1, cpu, "single"), True, RunFolder(tmp_path / "one"), 9)
        measure(model, Half(1, 2, cpu, "ddp"), True, RunFolder(tmp_path / "two"), 9)
        two = measure(model, Half(0, 2, cpu, "ddp"), True, RunFolder(tmp_path / "two"), 9)
    assert two == pytest.approx(one, rel=1e-5)
    assert set(one) == {
        f"validation_{name}{group}" for name in (*metrics, "loss") for group in ("", *map("/{}".format, KINDS))
    }
    said = [
        [(p.id, p.answer, p.scores, p.picture) for p in read_predictions(tmp_path / name)] for name in ("one", "two")
    ]
    assert said[0] == said[1]


def test_the_worst_come_first_and_ties_by_loss() -> None:
    said = [
        Prediction("test", str(i), "?", "a", "a" if i % 2 else "b", bool(i % 2), loss=i, labels=1) for i in range(9)
    ]
    said = scored(said, tallies(said, ["exact_match"]))
    assert worst(said, "exact_match", 3) == [8, 6, 4]
    assert worst([said[1]], "exact_match", 3) == []


def test_what_stands_below_a_picture() -> None:
    thought = Prediction("test", "1", "Odd?", "<think>\n3\n</think>\n\nodd", "even", False)
    assert caption(thought, False) == "Odd?\neven (not odd)"  # the reasoning of the reference is not judged
    assert caption(thought, None) == "Odd?\neven\nreference: odd"  # by a metric that calls nothing right or wrong
    assert caption(replace(thought, answer="odd"), True) == "Odd?\nodd"
    found = confusion([thought, replace(thought, answer="even", reference="even")])
    assert found is not None
    assert (found.labels, found.counts) == (["even", "odd"], [[1, 0], [1, 0]])


def test_how_far_it_has_come_is_shown(
    untrained: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvl_sft.evaluate.HELD", 16)
    seen: list[tuple[str, int | None, int]] = []

    def watched(things: Iterable[int], what: str, total: int | None = None) -> Iterator[int]:
        listed = list(things)
        seen.append((what, total, len(listed)))
        yield from listed

    monkeypatch.setattr("qvl_data.measuring.track", watched)
    with answering(cut):
        done = qvl_sft("evaluate", str(untrained), str(sets / "captions.jsonl"), "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert seen == [("test, 16 samples at a time", 3, 3)]


def test_the_terminal_shows_groups() -> None:
    one = {"anls": Estimate(0.5, 0.4, 0.6)}
    assert [column.header for column in table("test", 9, one, {}).columns][:2] == ["figure", "value"]
    shown = table("test", 9, one, {"odd": (4, one), "even": (5, one)})
    assert list(shown.columns[1].cells) == ["all", "odd", "even"]


# Samples


def test_references_and_fields_stand_beside_the_messages(tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Paris"}],
        "references": ["paris", "the city of Paris"],
        "kind": "city",
        "level": 3,
        "nested": {"no": 1},
    }
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    sample = Dataset(tmp_path / "data.jsonl")[0]
    assert references_of(sample) == ("paris", "the city of Paris")
    assert {key: fields_of(sample)[key] for key in ("kind", "level")} == {"kind": "city", "level": 3}
    assert "nested" not in fields_of(sample)


# During training


def test_early_stopping_takes_any_figure(data: Path) -> None:
    given = [f"data={{train: {data / 'digits'}, validation: {data / 'digits'}}}", "evaluate.every=4"]

    def stops_on(metric: str, *more: str) -> Any:
        changes = [*given, "evaluate.metrics=[rougeL, box_recall_50]", f"evaluate.early_stop.metric={metric}", *more]
        return load(RECIPE, "tiny", changes, "qvl_sft").evaluate.early_stop

    assert stops_on("validation_rougeL").larger_is_better
    assert stops_on("validation_box_recall_50").larger_is_better
    assert not stops_on("validation_loss").larger_is_better
    assert stops_on("validation_rougeL/odd", "evaluate.group_by=kind").larger_is_better
    assert not stops_on("validation_loss/odd", "evaluate.group_by=kind").larger_is_better


def test_training_measures_by_group_and_stops_on_a_group(data: Path, tmp_path: Path) -> None:
    digits = data / "digits"
    done = qvl_sft(
        "train", "tiny", f"data={{train: {digits}, validation: {digits}}}", "train.steps=3", "batch.size=2",
        "evaluate={every: 1, samples: 4, max_new_tokens: 2, metrics: [exact_match, rougeL], group_by: split, "
        "early_stop: {metric: validation_rougeL/validation, patience: 1}}", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.code == 0, done.err
    figures = result(tmp_path / "run")
    assert figures["steps"] == 2  # nothing is right yet, so the second evaluation is no better than the first
    assert "validation_rougeL/validation" in figures
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "By split" in page


# Bad input


def recipe_of(data: Path, *changes: str) -> list[str]:
    digits = data / "digits"
    return [
        "train",
        "tiny",
        f"data={{train: {digits}, validation: {digits}}}",
        "train.steps=1",
        "batch.size=2",
        *changes,
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["evaluate.metrics=[rouge_l]"], ['there is no metric "rouge_l"', 'did you mean "rougeL"?', "box_recall_50"]),
        (["evaluate.metrics=[iou]"], ["metric iou: no answer in validation states a box", "leave the metric out"]),
        (["evaluate.group_by=colour"], ["group_by colour: no sample of validation has this field", "dataset, license"]),
        (["evaluate={every: 1, early_stop: {metric: validation_bleu}}"], ["'validation_bleu' is no figure", "loss"]),
        (["evaluate={every: 1, early_stop: {metric: validation_loss/a}}"], ["is of a group; set `evaluate.group_by`"]),
        (
            ["evaluate={every: 1, group_by: split, early_stop: {metric: validation_loss/odd}}"],
            ["no sample of validation that is measured has split odd; choose from validation."],
        ),
    ],
)
def test_a_figure_that_cannot_be(changes: list[str], words: list[str], data: Path, tmp_path: Path) -> None:
    refused(qvl_sft(*recipe_of(data, *changes), "--out", str(tmp_path / "run")), *words)
    assert "checkpoints" not in " ".join(files(tmp_path))
    refused(qvl_sft("check", *recipe_of(data, *changes)[1:]), *words)


def test_a_metric_without_references(untrained: Path, tmp_path: Path) -> None:
    only_asked = [{"messages": [{"role": "user", "content": "Why?"}]}] * 2
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in only_asked), encoding="utf-8")
    done = qvl_sft("evaluate", str(untrained), str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out"))
    refused(done, "metric exact_match: no sample of test has an answer to compare with; add answers.")
    assert files(tmp_path) == ["data.jsonl"]


def test_references_that_are_no_list(untrained: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": turns, "references": "So!"}), encoding="utf-8")
    done = qvl_sft("evaluate", str(untrained), str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out"))
    refused(done, "no sample can be used, such as: ", "data.jsonl:1: `references` is no list of texts")


def test_a_box_outside_the_picture_is_left_out_and_said(untrained: Path, sets: Path, tmp_path: Path) -> None:
    one = next(iter(samples("grounding", "test")))
    answer = (
        one.messages[-1]
        .parts[0]
        .model_copy(update={"type": "text", "text": '{"bbox_2d": [10, 10, 1016, 90]}', "regions": None})
    )
    stated = one.messages[-1].model_copy(update={"parts": (answer,)})
    wrong = one.model_copy(update={"messages": (one.messages[0], stated), "regions": (), "id": "wrong"})
    write_samples([one, wrong], tmp_path / "data.parquet")
    out = ["--metric", "iou", "--out", str(tmp_path / "out")]
    with answering(lambda reference, _: reference):
        done = qvl_sft("evaluate", str(untrained), str(tmp_path / "data.parquet"), *out)
    assert done.code == 0, done.err
    assert (result(tmp_path / "out")["test_samples"], result(tmp_path / "out")["test_left_out"]) == (1, 1)
    assert "leaves 0..1000; is it in another space" in (tmp_path / "out/left_out.jsonl").read_text(encoding="utf-8")


def test_nothing_to_judge(untrained: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    refused(qvl_sft("evaluate", str(untrained), *out), "holds no predictions.jsonl; name DATA to answer")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    refused(qvl_sft("evaluate", str(untrained), str(tmp_path / "empty.jsonl"), *out), "empty.jsonl")
    assert files(tmp_path) == ["empty.jsonl"]


def test_options_that_would_do_nothing(captioned: Path, tmp_path: Path) -> None:
    command = ("evaluate", str(captioned), "--out", str(tmp_path / "out"))
    done = qvl_sft(*command, "--samples", "3", "--quant", "nf4")
    refused(done, "--quant, --samples: the answers in", "are judged as they are; name DATA")
    done = qvl_sft(
        "evaluate", str(captioned), "--split", "train", "--device-map", "auto", "--out", str(tmp_path / "out")
    )
    refused(done, "--device-map, --split: the answers in")


def test_an_earlier_evaluation_is_moved_aside_when_the_new_one_is_whole(captioned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("evaluate", str(captioned), "--out", str(out))
    assert qvl_sft(*command).code == 0
    refused(qvl_sft(*command), "already there; choose another --out, or move it aside with --fresh")
    refused(qvl_sft(*command, "--fresh", "--metric", "iou"), "iou")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert qvl_sft(*command, "--fresh", "--metric", "rougeL").code == 0
    assert {"out", "out.old-1"} == {path.name for path in tmp_path.iterdir()}
    assert "test_rougeL" in result(out)
    assert "test_exact_match" in result(tmp_path / "out.old-1")
    (out / "recipe.yaml").touch()  # a run
    refused(qvl_sft(*command, "--fresh"), "is not the folder of an evaluation, which is never moved")


def test_a_model_is_spread_by_accelerate(untrained: Path, sets: Path, tmp_path: Path) -> None:
    data = [str(sets / "captions.jsonl"), "--samples", "2", "--max-new-tokens", "2"]
    for name, options in (("here", []), ("spread", ["--device-map", "auto"])):
        done = qvl_sft("evaluate", str(untrained), *data, *options, "--out", str(tmp_path / name))
        assert done.code == 0, done.err
    assert read_predictions(tmp_path / "spread") == read_predictions(tmp_path / "here")


def test_too_many_groups() -> None:
    said = [Prediction("test", str(i), "?", "a", "a", True, fields={"n": i}) for i in range(200)]
    with pytest.raises(BadInput, match="group_by n: has 200 values, over 100"):
        figures_of("test", said, tallies(said, []), "n")
