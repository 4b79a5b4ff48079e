"""`check` reads the data, shows the slots of the first step, and says what cannot be meant; it needs no weights."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from edit_rows import task
from editing_verbs import Done, qvl_edit
from PIL import Image

from qvl_core.recipe.load import load
from qvl_edit.extract import extract
from qvl_edit.recipe import RECIPE
from qvl_edit.released import Configs, configs
from qvl_edit.times import Shift
from qvl_edit.tiny import tiny


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    task(folder / "meta" / "a", (1, 1, 2))
    task(folder / "meta" / "b", (1, 1))
    return folder / "meta"


def check(meta: Path, *changes: object, recipe: str = "full_2509") -> Done:
    given = [f"data={{train: {meta}}}", "mixture.sources=1=1,2=1"]
    done = qvl_edit("check", recipe, *given, *changes)
    return Done(done.code, " ".join(done.out.split()), done.err)


def test_a_released_checkpoint_is_checked_without_a_file_of_it(meta: Path, tmp_path: Path) -> None:
    done = check(meta, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    for words in (
        "slot 0 · ",
        "learned; noise 0.",
        "20,430,401",
        "sources: 50.0% of the steps, of a 100.0% (1 samples)",
        "512 steps of 8 samples, of 5",
        "is not written yet; before training run `qvl-edit extract`",
    ):
        assert words in done.out, words
    width, height = Image.open(tmp_path / "out" / "first-0.png").size  # a source and a target of some 512 x 512 pixels
    assert width * height == pytest.approx(2 * 512 * 512, rel=0.1)
    assert "slot 0" in (tmp_path / "out" / "check.html").read_text(encoding="utf-8")


def test_released_checkpoints_are_what_their_files_say(checkpoint: Callable[..., Path]) -> None:
    def of(name: str) -> Configs:
        return configs(load(RECIPE, "tiny", [f"model.name={name}"], "qvl_edit").model)

    known, read = of("Qwen/Qwen-Image-Edit-2511"), of(str(checkpoint("edit-2511", "vae")))
    assert known[:3] == read[:3]
    tiny, made = of("tiny"), of(str(checkpoint("edit-plus", "patches")))
    assert tiny == made._replace(seen=None)  # which is read for 2.1 alone
    assert known.shift == Shift()
    assert known.transformer["zero_cond_t"] is read.transformer["zero_cond_t"] is True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["optim.lr=2e-4"], "tune.transformer: 0.0002 is high for 20.3B parameters"),
        (["mixture.dropout=0"], "mixture.dropout is 0: guidance compares with an empty text"),
        (["schedule.warmup=600"], "schedule.warmup 600 is not over after 512 steps"),
        (["train.steps=2000", "checkpoint.every=null"], "checkpoint.every is not set"),
    ],
)
def test_doubts_are_notes(changes: list[str], words: str, meta: Path) -> None:
    done = check(meta, *changes)
    assert done.code == 0, done.err
    assert words in done.out


def test_what_is_wrong_with_the_data_is_counted_and_refused(tmp_path: Path) -> None:
    file = task(tmp_path / "meta" / "a", (1, 1, 1))
    (file.parent / "001-0.png").unlink()
    done = check(tmp_path / "meta", "mixture.sources=1=1", "--out", tmp_path / "out")
    assert done.code == 2
    assert "1 x media_missing" in done.out
    assert "1 bad samples, data.max_bad allows 0" in done.err
    (line,) = (tmp_path / "out" / "bad_samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["reason"] == "media_missing"


def test_what_is_stored_is_looked_at(meta: Path, tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    stored = [f"stored.embeddings={tmp_path / 'out'}", f"stored.latents={tmp_path / 'latents'}"]
    model = f"model.name={checkpoint('edit-plus', 'vae')}"
    sizes = ["pictures.size=64", "pictures.vl_size=56", "data.max_bad=9"]

    def checked(*changes: str) -> Done:
        return check(meta, *stored, *sizes, *changes, recipe="tiny")

    before = checked(model)
    assert before.code == 0, before.err
    for name in ("embeddings", "latents"):
        assert f"stored.{name}: " in before.out
    assert before.out.count("is not written yet; before training run `qvl-edit extract`") == 2
    extract(load(RECIPE, "tiny", [f"data={{train: {meta}, workers: 0}}", model, *stored, *sizes], "qvl_edit"))
    done = checked(model)
    assert done.code == 0, done.err
    assert "tokens of text and sources" in done.out
    assert re.search(r"latents of [23] pictures", done.out)
    assert "is not " not in done.out
    for change, said in (
        (f"model.name={checkpoint('edit', 'vae')}", r"was made with template .* in stored.embeddings"),
        ("pictures.vl_size=112", r"was made with resize .* in stored.embeddings"),
        ("train.precision=bf16", r"was made with dtype float32, and this is dtype bfloat16"),
    ):
        other = checked(*([change] if change.startswith("model") else [model, change]), "mixture.sources=1=1")
        assert other.code == 2
        assert re.search(said, other.err), other.err
    lone = f"stored.embeddings={tmp_path / 'none'}"
    tiny(tmp_path / "model", seed=1)
    for change, said in (("pictures.size=96", "size"), (f"model.name={tmp_path / 'model'}", "autoencoder")):
        other = checked(model, lone, change)
        assert (other.code, "name another folder in stored.latents" in other.err) == (2, True), other.err
        assert f"was made with {said}" in other.err
