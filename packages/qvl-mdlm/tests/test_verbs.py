"""convert, sample, infill, evaluate, bench and merge, as they are called."""

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from invoking import qvl_mdlm, write_adapter, write_choices
from rich.console import Console
from rich.style import Style
from safetensors.torch import load_file

from qvl_core.errors import BadInput
from qvl_core.run import RunFolder, read_records
from qvl_data.asked import asked
from qvl_data.chat import encode, prompt
from qvl_data.sources import Mixture
from qvl_mdlm import infill, open_masked
from qvl_mdlm.batch import collation
from qvl_mdlm.canvas import STYLES, Piece, on_terminal, pieces
from qvl_mdlm.evaluate import Evaluation, answered, figures_of
from qvl_mdlm.form import read_form
from qvl_mdlm.layout import shape_of
from qvl_mdlm.likelihood import bound
from qvl_mdlm.prediction import Prediction
from qvl_mdlm.sample import begin_with_space, sample
from qvl_mdlm.sampling import Sampling

QUESTION = "Which digit is this?"


@pytest.fixture(scope="module")
def converted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    done = qvl_mdlm("convert", str(base), "--out", str(out), "--attention", "prefix")
    assert (done.code, "attention prefix" in done.out) == (0, True), done.err
    return out


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "final", base, pad_to=16)


@pytest.fixture(scope="module")
def opened(converted: Path) -> tuple[Any, Any]:
    return open_masked(str(converted))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_choices(tmp_path_factory.mktemp("data") / "digits.jsonl", 6)


def test_a_converted_folder_has_the_weights_and_its_own_settings(base: Path, converted: Path, opened: Any) -> None:
    old, new = (load_file(folder / "model.safetensors") for folder in (base, converted))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    config = json.loads((converted / "config.json").read_text())
    assert (config["model_type"], config["pattern"]) == ("qvl_masked_qwen3_vl", "prefix")
    assert (converted / "generation_config.json").is_file()
    assert opened[0].config.pattern == "prefix"


def test_an_adapter_opens_on_its_base_as_it_was_trained_and_merges_to_the_same(adapter: Path, tmp_path: Path) -> None:
    model, _ = open_masked(str(adapter))
    assert (model.config.pattern, model.config.pad_to) == ("full", 16)
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    done = qvl_mdlm("merge", str(copy), "--out", str(tmp_path / "merged"))
    assert done.code == 0, done.err
    shutil.rmtree(copy)  # needed no more
    merged, _ = open_masked(str(tmp_path / "merged"))
    assert merged.config.pad_to == 16
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        one, other = (each(input_ids=ids).logits for each in (model, merged))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_opened_says_what_to_do(base: Path, converted: Path, adapter: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    (foreign / "diffusion.json").unlink()
    cases = [
        (["sample", str(base), "?"], "is an autoregressive model"),
        (["sample", str(foreign), "?"], "no diffusion.json there"),
        (["sample", "tiny", "?"], "write one with `qvl-mdlm tiny FOLDER`"),
        (["sample", str(converted), "?", "--image", str(tmp_path / "no.png")], "there is no such picture"),
        (["sample", str(converted), "?", "--base", str(base)], "is no adapter and has no base"),
        (["convert", str(converted), "--out", str(tmp_path / "x")], "is a masked diffusion model already"),
        (["convert", str(adapter), "--out", str(tmp_path / "x")], "merge it with `qvl-sft merge"),
        (["convert", str(base), "--out", str(tmp_path / "x"), "--attention", "block"], "block_size belongs to"),
        (["convert", str(base), "--out", str(converted)], "is already there"),
        (["merge", str(converted), "--out", str(tmp_path / "x")], "is no adapter"),
        (["infill", str(converted), "?", "--answer", "No gap."], "has no gap to fill"),
        (["infill", str(converted), "?", "--answer", "[9999999999]"], "has gaps of 9,999,999,999 tokens"),
        (["bench", str(converted), "--out", "no/where.json"], "--out no/where.json: there is no folder no; make it"),
        (["bench", str(converted), "--base", "./nowhere"], "--base: there is no folder ./nowhere"),
    ]
    for args, words in cases:
        done = qvl_mdlm(*args)
        assert (done.code, words in done.err) == (2, True), done.err
        assert done.err.count("\n") <= 2, done.err  # one sentence
    assert not (tmp_path / "x").exists()


def test_sample_prints_the_answer_and_what_it_took(converted: Path, opened: Any) -> None:
    how = ["--max-new-tokens", "6", "--steps", "3"]
    done = qvl_mdlm("sample", str(converted), QUESTION, *how, "--watch")
    model, processor = opened
    question, _ = prompt(asked(QUESTION), processor)
    (written,) = sample(model, processor, [question], Sampling(max_new_tokens=6, steps=3))
    assert done.code == 0, done.err
    assert f"{written.tokens} tokens, {written.forwards} forward passes" in done.out
    plain = qvl_mdlm("sample", str(converted), QUESTION, *how)
    assert "forward passes" not in plain.out
    assert done.out.startswith(plain.out.rstrip("\n"))


def test_a_canvas_is_shown_as_masks_and_words(opened: Any) -> None:
    model, processor = opened
    mask, tokenizer = model.config.mask_token_id, processor.tokenizer
    ids = np.array([*tokenizer("one two")["input_ids"], mask, mask, tokenizer.eos_token_id])
    found = pieces(ids, [0], tokenizer, mask)
    assert "".join(piece.text for piece in found) == "one two░░·"
    assert [piece.kind for piece in found][-2:] == ["mask", "end"]
    assert found[0].kind == "new"
    text = on_terminal([*found, Piece("\x1b[2J", "old")])
    assert text.plain == "one two░░·\\x1b[2J"  # a model cannot write to the terminal
    assert text.get_style_at_offset(Console(), 0).bgcolor == Style.parse(STYLES["new"]).bgcolor


@pytest.mark.parametrize(
    "answer",
    ["It is a [4] of [2].", "[3]", "[1][2] is  [2]", r"\[4] and [1] <|im_end|> é [2]", "일 [2]\n[1]"],
)
def test_what_is_given_stays_to_the_letter(opened: Any, answer: str) -> None:
    model, processor = opened
    form = read_form(answer, processor, model.config.mask_token_id, 16)
    assert len(form.ids) % 16 == 0
    filled = infill(model, processor, QUESTION, answer)
    rest = filled.text
    for text, word in zip(form.texts, (*filled.gaps, ""), strict=True):
        assert rest.startswith(text + word), (filled, form)
        rest = rest[len(text + word) :]
    assert not rest
    assert filled.tokens == int((form.ids == model.config.mask_token_id).sum()) == filled.forwards


def test_the_steps_of_an_answer_are_those_of_its_own_length(opened: Any, converted: Path) -> None:
    sampling = Sampling(max_new_tokens=1, steps=2)  # what another canvas could not have
    assert infill(*opened, QUESTION, "[3]", sampling=sampling).forwards == 2
    for option in ("--max-new-tokens=8", "--eos-guard", "--no-early-stop"):  # none of them would change anything
        assert qvl_mdlm("infill", str(converted), QUESTION, "--answer", "[1]", option).code == 2


def test_the_space_before_a_gap_begins_its_first_token(opened: Any) -> None:
    model, processor = opened
    form = read_form("It is [2], a [1] it", processor, model.config.mask_token_id, None)
    assert [start for start, _ in form.gaps] == form.spaced.tolist()
    tokenizer = processor.tokenizer
    assert tokenizer.decode(form.ids[: form.gaps[0][0]]) == "It is"
    begins = begin_with_space(model.config, tokenizer)
    question, _ = prompt(asked(QUESTION), processor)
    how = Sampling(max_new_tokens=len(form.ids))
    (written,) = sample(model, processor, [question], how, [form.ids], [form.spaced])
    assert all(begins[written.ids[place]] for place in form.spaced)


def test_evaluate_writes_figures_predictions_and_a_page(adapter: Path, data: Path, tmp_path: Path) -> None:
    broken = json.loads(data.read_text(encoding="utf-8").splitlines()[0])
    broken["id"] = "broken"
    broken["extra"] = json.dumps({"fields": {"choices": "yes or no"}})
    file = tmp_path / "data.jsonl"
    file.write_text(data.read_text(encoding="utf-8") + json.dumps(broken) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    how = ["--max-new-tokens", "4", "--steps", "2", "--draws", "2", "--media-root", str(data.parent)]
    done = qvl_mdlm("evaluate", str(adapter), str(file), "--out", str(out), *how)
    assert done.code == 0, done.err
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["test_samples"] == 6
    assert result["test_left_out"] == 1
    assert result["test_nelbo_error"] > 0
    records = [Prediction(**record) for record in read_records(out / "predictions.jsonl")]
    wanted = figures_of("test", records, ("nelbo", "exact_match"))
    assert {key: result[key] for key in wanted} == pytest.approx(wanted)
    assert result["test_tokens_per_second"] > 0
    assert [record.chosen is not None for record in records] == [True] * 3 + [False] * 3
    assert "Answers on test" in (out / "report.html").read_text(encoding="utf-8")
    assert qvl_mdlm("evaluate", str(adapter), str(file), "--out", str(out)).code == 2  # it stays


def test_the_choice_is_the_likeliest_under_common_masks(adapter: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = qvl_mdlm(
        "evaluate", str(adapter), str(data), "--out", str(out), "--metric", "choice_accuracy", "--draws", "3",
        "--samples", "6",
    )  # fmt: skip
    assert done.code == 0, done.err
    model, processor = open_masked(str(adapter))
    shape = shape_of(model.config, processor.tokenizer, 16)
    mixture = Mixture(str(data), "test")
    records = {record["id"]: record for record in read_records(out / "predictions.jsonl")}
    for place, item in enumerate(mixture.items()):
        one = mixture.sample(item)
        if place == 3:  # the others have no choices
            break
        nats = [
            float(
                bound(
                    model,
                    [encode(answered(one, str(digit)), processor, train_on="last")],
                    shape,
                    collation(processor, True, patterned=False),
                    draws=3,
                    places=[place],
                ).of_samples[0]
            )
            for digit in range(10)
        ]
        assert records[one.id]["chosen"] == str(int(np.argmin(nats)))
    assert records[one.id]["answer"] is None


def test_an_autoregressive_model_is_measured_as_it_is(base: Path, data: Path, tmp_path: Path) -> None:
    args = ["evaluate", str(base), str(data), "--out", str(tmp_path / "out"), "--metric", "nelbo", "--draws", "1"]
    done = qvl_mdlm(*args)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out/result.json").read_text(encoding="utf-8"))["test_nelbo"] > 0
    assert qvl_mdlm(*args[:4], str(tmp_path / "two"), "--metric", "rouge").code == 2


def test_bench_compares_ways_that_give_the_same_tokens(base: Path, converted: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = qvl_mdlm(
        "bench", str(converted), "--base", str(base), "--ratio", "8", "--tokens", "4", "--repeats", "1", "--rows", "2",
        "--out", str(out),
    )  # fmt: skip
    assert done.code == 0, done.err
    timings = {one["way"]: one for one in json.loads(out.read_text(encoding="utf-8"))["timings"]}
    assert set(timings) == {"uncached", "exact prefix cache", "exact prefix cache, threshold 0.9", "autoregressive"}
    assert timings["exact prefix cache"]["same"] == 1
    assert all(one["forwards"] <= 4 and one["prompt_tokens"] == 32 for one in timings.values())


def test_a_settings_file_of_something_else(adapter: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(adapter, tmp_path / "broken")
    (broken / "diffusion.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(BadInput, match="is not what training writes"):
        open_masked(str(broken))


def test_two_processes_find_what_one_finds(opened: Any, data: Path, tmp_path: Path) -> None:
    model, processor = opened
    lists = {"test": Mixture(str(data), "test")}
    shape = shape_of(model.config, processor.tokenizer)
    how = Sampling(max_new_tokens=4, steps=2, temperature=1.0)
    evaluation = Evaluation(lists, processor, shape, ("nelbo", "exact_match", "choice_accuracy"), how, draws=2)
    meet, values = Barrier(2, timeout=120), [None, None]  # of one that fails the other is told

    def gather(rank: int, value: Any) -> list[Any]:
        values[rank] = value
        meet.wait()
        found = list(values)
        meet.wait()
        return found

    def measure(rank: int, size: int) -> dict[str, float]:
        run = RunFolder(tmp_path / f"{rank}-of-{size}")
        run.path.mkdir()
        world = SimpleNamespace(
            rank=rank, size=size, gather=partial(gather, rank) if size > 1 else lambda value: [value]
        )
        own = copy.deepcopy(model)  # prompts are read by a hook on the model: threads do not share one
        return evaluation.measure(own, world, True, run, limit=5)  # type: ignore[arg-type]

    alone = measure(0, 1)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(measure, (0, 1), (2, 2)))
    assert together[0] == together[1] == pytest.approx(alone, rel=1e-5)
    lines = [(tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8") for name in ("0-of-1", "0-of-2")]
    records = [[json.loads(line) for line in text.splitlines()] for text in lines]
    found = [[(record["id"], record["answer"]) for record in each] for each in records]
    assert found[0] == found[1]  # drawn alike, whoever draws it
    assert len(found[0]) == 5
    assert not (tmp_path / "1-of-2/predictions.jsonl").exists()
