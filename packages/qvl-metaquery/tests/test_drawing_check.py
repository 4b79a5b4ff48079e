"""`check` reads the data, shows what is learned first, and says what cannot be meant; a later stage is reported."""

from pathlib import Path

import pytest
from drawing_verbs import Done, qvl_metaquery
from PIL import Image
from sketches import drawn, edited, said, written

from qvl_core.recipe.load import load
from qvl_data.example.digits import digit_media
from qvl_metaquery.recipe import RECIPE
from qvl_metaquery.train import train

SMALL = ("queries.number=4", "batch.size=4", "train.steps=2", "schedule.warmup=0")


def check(*changes: object) -> Done:
    done = qvl_metaquery("check", "tiny", *SMALL, *changes)
    return Done(done.code, " ".join(done.out.split()), done.err)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("check") / "named.parquet", [drawn(index) for index in range(8)])


def test_the_first_batch_is_shown_and_its_pictures_are_left(data: Path, tmp_path: Path) -> None:
    done = check(f"data={{train: {data}}}", "--out", tmp_path)
    assert done.code == 0, done.err
    for words in (
        "a handwritten ",
        "to be drawn: 8 x 8 pixels; noise 0.",
        "queries",
        "2 steps; one epoch is 8 pictures",
    ):
        assert words in done.out, words
    assert "note:" not in done.out
    assert Image.open(tmp_path / "first-0.png").size == (8, 8)
    assert "a handwritten " in (tmp_path / "check.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["flow.dropout=0"], "flow.dropout is 0: guidance compares with an empty prompt"),
        (["schedule.warmup=5"], "schedule.warmup 5 is not over after 2 steps"),
        (["train.steps=2000"], "checkpoint.every is not set"),
        (["flow.task=edit"], "flow.task is edit, and no sample shows a picture"),
        (["queries.caption_tokens=1"], "8 of 8 texts are longer than queries.caption_tokens and are cut"),
        (["flow.size=128"], "8 of 8 pictures are smaller than flow.size 128 and are enlarged"),
    ],
)
def test_doubts_are_notes(changes: list[str], words: str, data: Path) -> None:
    done = check(f"data={{train: {data}}}", *changes)
    assert done.code == 0, done.err
    assert words in done.out


def test_pictures_that_the_task_never_leaves_out_are_a_note(tmp_path: Path) -> None:
    file = written(tmp_path / "both.parquet", [drawn(0), edited(1, sources=[digit_media(1)])])
    assert "flow.task is t2i, and 1 of 2 samples show pictures" in check(f"data={{train: {file}}}").out


def test_samples_that_draw_nothing_are_counted_and_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "chats.parquet", [drawn(0), drawn(1), said(2)])
    done = check(f"data={{train: {file}}}", "--out", tmp_path)
    assert done.code == 2
    assert "no_picture" in done.out
    assert "1 bad samples, data.max_bad allows 0" in done.err
    assert "said-2" in (tmp_path / "bad_samples.jsonl").read_text(encoding="utf-8")


def test_a_second_stage_says_what_it_takes_and_what_has_changed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, only = tmp_path / "first", f"data={{train: {data}}}"
    train(load(RECIPE, "tiny", [*SMALL, only], "qvl_metaquery"), out=first)
    names = [f"model.name={first / 'base-0/qwen'}", f"sana.name={first / 'base-0/sana'}"]
    later = [*names, f"model.init_from={first / 'final'}", "flow.train_shift=3", "tune.transformer.mode=frozen"]
    done = check(only, *later)
    assert done.code == 0, done.err
    capsys.readouterr()
    train(load(RECIPE, "tiny", [*SMALL, only, *later], "qvl_metaquery"), out=tmp_path / "later")
    for text in (done.out, " ".join(capsys.readouterr().out.split())):
        assert "each weight in its place: queries (6, 128), connector (" in text
        assert "and Sana's transformer as it was trained there" in text
        assert "not from there: Qwen3-VL and the autoencoder" in text
        assert "changed since: flow.train_shift was 1.0, is 3.0" in text
        assert text.count("changed since") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("queries.number=5", "has queries.number 4, this recipe 5; set queries.number=4"),
        ("connector.layers=2", "has connector.layers 1, this recipe 2"),
        ("connector.width=64", "has connector.width null, this recipe 64; set connector.width=null, or"),
    ],
)
def test_a_second_stage_of_another_shape_is_refused(change: str, words: str, data: Path, drawer: Path) -> None:
    done = qvl_metaquery("check", "tiny", f"data={{train: {data}}}", f"model.init_from={drawer}", change)
    assert done.code == 2
    words = words.replace("number 4", "number 8").replace("number=4", "number=8")
    assert words in " ".join(done.err.split())


def test_the_width_that_null_stands_for_is_null(data: Path, drawer: Path) -> None:
    done = check(f"data={{train: {data}}}", "queries.number=8", f"model.init_from={drawer}", "connector.width=128")
    assert done.code == 0, done.err
    assert "each weight in its place" in done.out
