"""Evaluations: each picture is looked at once, no sample ends one, figures say what they are of."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import digits, encoded, samples
from invoking import qvl_mdlm, write_adapter, write_choices

from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.encoded import IGNORE
from qvl_core.qwen3vl.seen import look
from qvl_core.run import RunFolder, read_records
from qvl_core.training.world import World
from qvl_data.chat import encode, prompt
from qvl_data.sources import Mixture
from qvl_mdlm.batch import collation
from qvl_mdlm.evaluate import Evaluation, figures_of
from qvl_mdlm.layout import shape_of
from qvl_mdlm.likelihood import Bound, bound
from qvl_mdlm.opening import open_masked
from qvl_mdlm.prediction import Prediction, read_predictions
from qvl_mdlm.sample import sample
from qvl_mdlm.sampling import Sampling

CANVAS = 4


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("measured") / "final", base, pad_to=16)


@pytest.fixture(scope="module")
def opened(adapter: Path) -> tuple[Any, Any]:
    return open_masked(str(adapter))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_choices(tmp_path_factory.mktemp("measured") / "digits.jsonl", 5)


def measured(
    opened: tuple[Any, Any], data: Path, out: Path, metrics: Sequence[str] | None = None
) -> tuple[dict[str, float], list[Prediction]]:
    model, processor = opened
    evaluation = Evaluation(
        {"test": Mixture(str(data), "test")},
        processor,
        shape_of(model.config, processor.tokenizer, 16),
        metrics,
        Sampling(max_new_tokens=CANVAS, steps=2),
    )
    figures = evaluation.measure(model, World(0, 1, model.device, "single"), True, RunFolder(out))
    return figures, read_predictions(out)


def test_each_picture_goes_through_the_tower_once(opened: Any, data: Path, tmp_path: Path) -> None:
    """For its eight masks, its ten choices and its answer together."""
    pictures = []
    tower = opened[0].model.visual
    hook = tower.register_forward_pre_hook(
        lambda _, __, given: pictures.append(len(given["grid_thw"])), with_kwargs=True
    )
    try:
        _, predictions = measured(opened, data, tmp_path)
    finally:
        hook.remove()
    assert sum(pictures) == len(predictions) == 5
    assert all(p.answer is not None for p in predictions)
    assert [p.chosen is not None for p in predictions] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_attention_that_cannot_tell_samples_of_a_row_apart_measures_the_same(
    how: str, opened: Any, data: Path, tmp_path: Path
) -> None:
    wanted, _ = measured(opened, data, tmp_path)
    try:
        opened[0].set_attn_implementation(how)
        figures, _ = measured(opened, data, tmp_path)
    finally:
        attention.use(opened[0])
    assert figures == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_answers_are_the_same_from_features_that_were_seen_before(opened: Any, guidance: float) -> None:
    """Also of a prompt that shows fewer pictures than the conversation that was seen."""
    model, processor = opened
    asked = [prompt(chat, processor)[0] for chat in samples()]
    whole = encode(samples()[3], processor)
    how = Sampling(max_new_tokens=CANVAS, guidance=guidance)
    seen = [*look(model, asked[:3]), *look(model, [whole])]
    plain, given = (sample(model, processor, asked, how, seen=features) for features in (None, seen))
    assert [one.ids.tolist() for one in plain] == [one.ids.tolist() for one in given]


def test_whether_there_are_choices_is_seen_while_measuring(
    opened: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mixture, "outline", None)  # what reading through the data set would call
    figures, _ = measured(opened, data, tmp_path)
    assert "test_choice_accuracy" in figures


def test_a_canvas_beyond_the_models_last_position_is_left_out_and_named(
    opened: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = opened
    lengths = [len(encode(one, processor)) for one in digits(5)]
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    lines[1]["messages"][0]["parts"].append({"type": "text", "text": "one two three four five six seven " * 4})
    file = data.with_name("long.jsonl")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", max(lengths) + 20)
    figures, predictions = measured(opened, file, tmp_path)
    assert figures["test_left_out"] == 1
    assert len(predictions) == 4
    (entry,) = read_records(tmp_path / "left_out.jsonl")
    assert entry["reason"] == "too_long"
    assert entry["id"].endswith(":2")
    assert f"is over the model's {max(lengths) + 20}" in entry["message"]


def test_two_perplexities_say_which_tokens_they_are_of(opened: Any, data: Path, tmp_path: Path) -> None:
    figures, predictions = measured(opened, data, tmp_path, ["nelbo"])
    processor = opened[1]
    for p in predictions:
        assert p.answer_tokens == len(processor.tokenizer(p.reference)["input_ids"]) + 1
        assert p.tokens == 16  # pad_to
    nats = sum(p.nats for p in predictions)
    answers, canvases = sum(p.answer_tokens for p in predictions), sum(p.tokens for p in predictions)
    assert figures["test_answer_perplexity"] == pytest.approx(np.exp(nats / answers))
    assert figures["test_canvas_perplexity"] == pytest.approx(np.exp(nats / canvases))
    assert figures["test_answer_perplexity"] > figures["test_canvas_perplexity"] > 1


@torch.no_grad()
def test_the_bound_is_the_enumerated_one(masked: Callable[..., Any], processor: Any) -> None:
    """Over all masks of an answer; one of l of n tokens weighs (l - 1)! (n - l)! / n!."""
    model, (chat,) = masked(), encoded(processor)[:1]
    answer = np.flatnonzero(chat.labels != IGNORE)
    n, end = len(answer), answer[-1] + 1
    masks = np.array(list(product((False, True), repeat=n)))[1:]
    ids = np.tile(chat.ids[:end], (len(masks), 1))
    ids[:, answer] = np.where(masks, model.config.mask_token_id, ids[:, answer])
    nll = -model(input_ids=torch.from_numpy(ids)).logits.log_softmax(-1)[:, answer]
    nll = nll.gather(-1, torch.from_numpy(chat.ids[answer]).expand(len(masks), n)[..., None])[..., 0].numpy()
    weigh = [factorial(count - 1) * factorial(n - count) / factorial(n) for count in masks.sum(1)]
    wanted = float((np.array(weigh)[:, None] * masks * nll).sum())
    shape = shape_of(model.config, processor.tokenizer)
    found = bound(model, [chat], shape, collation(processor, True, False), draws=40 * n)
    spread = found.nats[0].std(ddof=1) / (40 * n) ** 0.5
    assert abs(found.mean - wanted) < 4 * spread
    assert spread < 0.01 * wanted
    assert found.tokens.tolist() == found.answers.tolist() == [n]


def test_the_standard_error_is_that_of_the_mean_over_samples() -> None:
    nats = np.array([[1.0, 3.0], [4.0, 4.0], [7.0, 5.0]])
    found = Bound(nats, np.array([2, 2, 2]), np.array([2, 2, 2]))
    assert (found.mean, found.error) == pytest.approx((4.0, 2 / 3**0.5))


def test_a_weight_in_training_does_not_change_the_bound(opened: Any) -> None:
    model, processor = opened
    chat = encode(digits(1)[0], processor)
    weighted = replace(chat, weights=np.full(len(chat), 0.25, np.float32))
    shape = shape_of(model.config, processor.tokenizer, 16)
    collate = collation(processor, True, patterned=False)
    plain, same = (bound(model, [one], shape, collate, draws=2).mean for one in (chat, weighted))
    assert plain == same > 0


def test_a_single_sample_has_no_standard_error(adapter: Path, data: Path, tmp_path: Path) -> None:
    found = {}
    for count in (1, 2):
        out = tmp_path / str(count)
        done = qvl_mdlm(
            "evaluate", str(adapter), str(data), "--out", str(out), "--metric", "nelbo", "--draws", "1",
            "--samples", str(count),
        )  # fmt: skip
        assert done.code == 0, done.err
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        found[count] = "test_nelbo_error" in result, "±" in (out / "report.html").read_text(encoding="utf-8")
    assert found == {1: (False, False), 2: (True, True)}


def test_forwards_per_token_is_a_mean_over_answers() -> None:
    def one(forwards: int, written: int, chosen: str | None = None) -> Prediction:
        return Prediction("test", "x", "?", "a", 2.0, 4, 2, "a", True, forwards, written, chosen)

    figures = figures_of("test", [one(2, 4), one(3, 3, "a"), one(1, 4, "b")], ("exact_match", "nelbo"))
    assert figures["test_forwards_per_token"] == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert figures["test_choice_accuracy"] == 0.5
    assert figures["test_loss"] == 0.5
    assert figures["test_canvas_perplexity"] == pytest.approx(np.exp(0.5))
    assert figures["test_answer_perplexity"] == pytest.approx(np.exp(1.0))
    assert figures_of("test", [], ("exact_match",)) == {}
