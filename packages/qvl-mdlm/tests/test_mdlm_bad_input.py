"""What cannot be meant ends with exit code 2 and one sentence that says what to do, whichever verb meets it."""

from pathlib import Path
from typing import Any

import pytest
from asking import talk
from invoking import qvl_mdlm

from qvl_core.qwen3vl.load import load_model
from qvl_core.recipe.blocks import Model
from qvl_data.convert import write_samples
from qvl_mdlm.convert import convert


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of chats: `good`, with an answer that is `empty`, and of questions alone (`prompts`)."""
    folder = tmp_path_factory.mktemp("data")
    for name, answers in (("good", ["1", "2"]), ("empty", ["1", " "]), ("prompts", [])):
        turns = [[("user", "?"), ("assistant", text)] for text in answers] or [[("user", "?")]]
        write_samples([talk(str(n), *one) for n, one in enumerate(turns)], folder / name / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def blocks(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted to blocks of 4."""
    return convert(str(base), tmp_path_factory.mktemp("converted") / "blocks", "block", 4)


@pytest.fixture(scope="module")
def cut(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose embedding has a row for each token and none to spare."""
    model, processor = load_model(Model(name=str(base)), precision="fp32", device="cpu")
    model.resize_token_embeddings(max(processor.tokenizer.get_vocab().values()) + 1)
    folder = tmp_path_factory.mktemp("cut") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize(
    ("model", "chats", "changes", "words"),
    [
        ("base", "good", ["diffusion.mask_token_id={eos}"], "is the end token; leave it out"),
        ("base", "good", ["diffusion.mask_token_id={image}"], "is the image token; leave it out"),
        ("cut", "good", [], "rows and none to spare; give the id of a token that your texts never use"),
        (
            "base",
            "good",
            ["sampling={steps: 2, block: 2}"],
            "`sampling.steps` 2: an answer has 4 blocks, and each takes",
        ),
        ("blocks", "good", [], "attention full: the checkpoint was trained with block; give that"),
        ("blocks", "good", ["diffusion={attention: block, block_size: 8}"], "trained with 4; give that"),
        ("base", "empty", [], "answer without text; give it one"),
        ("base", "prompts", [], "no assistant turn to learn from; add an answer"),
    ],
)
def test_a_recipe_is_refused(
    verb: str,
    model: str,
    chats: str,
    changes: list[str],
    words: str,
    data: Path,
    processor: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    ids = {"eos": processor.tokenizer.eos_token_id, "image": processor.image_token_id}
    given = [change.format(**ids) if "token_id" in change else change for change in changes]
    name = f"model.name={request.getfixturevalue(model)}"
    how = [name, f"data={{train: {data / chats}}}", "batch.size=2", "train.steps=1", "evaluate.every=null", *given]
    done = qvl_mdlm(verb, "tiny", *how, "--out", str(tmp_path / "out"))
    said = " ".join((done.out + done.err).split())  # `check` prints what it found of the data, and wraps it
    assert (done.code, words in said) == (2, True), said
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err


def test_an_evaluation_is_refused_before_anything_is_measured(
    blocks: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvl_mdlm.evaluate.Evaluation.measure", None)
    how = ["--split", "train", "--out", str(tmp_path / "out"), "--steps", "65"]
    done = qvl_mdlm("evaluate", str(blocks), str(data / "good"), *how)
    assert (done.code, "steps 65: must be from 1 to the 64 tokens" in done.err) == (2, True), done.err


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_a_canvas_over_the_limit_is_refused(verb: str, blocks: Path, data: Path, tmp_path: Path) -> None:
    what = ["?"] if verb == "sample" else [str(data / "good"), "--split", "train", "--out", str(tmp_path / "out")]
    done = qvl_mdlm(verb, str(blocks), *what, "--max-new-tokens", "100000000")
    assert (done.code, "over the model's" in done.err) == (2, True), done.err
    assert done.err.strip().count("\n") == 0, done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--suppress", "999999"], "suppress 999999: there is no such token; ids are from 0 to"),
        (["--steps", "2"], "a canvas of 64 tokens has 16 blocks of 4, and each takes a step; give 16 steps or more"),
        (["--steps", "65"], "steps 65: must be from 1 to the 64 tokens"),
        (["--steps", "16", "--factor", "1"], "steps and factor: each says how many tokens a step writes; keep one"),
        (["--block", "0"], "invalid value for '--block'"),
        (["--block", "8"], "block 8: the checkpoint was trained with blocks of 4 tokens; leave it out"),
        (["--temperature", "-1"], "invalid value for '--temperature'"),
        (["--temperature", "inf"], "temperature inf: must be a number of at least 0"),
        (["--cache", "dual"], "whose cache is exact: leave it out"),
    ],
)
def test_a_way_to_write_is_refused(options: list[str], words: str, blocks: Path) -> None:
    done = qvl_mdlm("sample", str(blocks), "?", *options)
    assert (done.code, words in done.err) == (2, True), done.err
    assert done.err.strip().count("\n") == 0, done.err


def test_a_converted_model_trains_as_its_conversion_says(base: Path, data: Path, tmp_path: Path) -> None:
    said = qvl_mdlm("convert", str(base), "--out", str(tmp_path / "model"), "--attention", "block", "--block-size", "4")
    changes = said.out.partition("train it with ")[2].rstrip(".\n").split()
    how = ["batch.size=2", "train.steps=1", "schedule.warmup=0", "evaluate.every=null"]
    done = qvl_mdlm("train", "tiny", f"data={{train: {data / 'good'}}}", *how, *changes, "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
